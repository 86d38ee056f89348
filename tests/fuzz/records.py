"""Flower records from parts of an input, and back: of each tensor its name, type, shape and content."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedcaptor.common.wire import HEADER, STYPE, TENSORS, Limits

IN_ARRAYS = Limits(inline_bytes=0)


def record_of(header: str, parts: Sequence[bytes]) -> RecordDict:
    """Make a message of any header and tensors; nothing of them is checked."""
    arrays = {}
    for name, dtype, shape, content in zip(*(parts[i::4] for i in range(4)), strict=False):
        dims = [n for (n,) in struct.iter_unpack("<q", shape[: len(shape) // 8 * 8])]
        arrays[text(name)] = Array(text(dtype), tuple(dims), STYPE, content)
    return RecordDict({HEADER: ConfigRecord({"json": header}), TENSORS: ArrayRecord(arrays)})


def header_of(record: RecordDict) -> str:
    """Return the header's JSON."""
    return str(record[HEADER]["json"])


def tensors_of(record: RecordDict) -> list[bytes]:
    """Return the parts that `record_of` takes."""
    parts = []
    for name, array in record[TENSORS].items():
        parts += [name.encode(), array.dtype.encode(), struct.pack(f"<{len(array.shape)}q", *array.shape), array.data]
    return parts


def text(data: bytes) -> str:
    return data.decode(errors="replace")
