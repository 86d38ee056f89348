"""Pack headers and tensors into Flower records and unpack them: no other module sees raw records.

A message is one RecordDict: a ConfigRecord with the header as JSON and, where they are small, the tensors in the bytes
of safetensors. Larger ones are an ArrayRecord of raw little-endian bytes, which Flower sends in parts. Each record,
array and part is an HTTP request of its own on both sides of the SuperLink, which is what a small message costs.

Nothing is unpickled and `numpy.load` is never called; each bound is checked before memory is taken.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError

from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import Header, Rules, TensorRule, rule_of

HEADER = "fedcaptor.header"
TENSORS = "fedcaptor.tensors"
INLINE = "tensors"
STYPE = "fedcaptor.raw"
DTYPES = {
    "uint8": "|u1",
    "uint32": "<u4",
    "int32": "<i4",
    "int64": "<i8",
    "float32": "<f4",
    "float64": "<f8",
}
_STORED = {"U8": "uint8", "U32": "uint32", "I32": "int32", "I64": "int64", "F32": "float32", "F64": "float64"}
MAX_DIMENSIONS = 8
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[0-9]{1,3})?")
_CHECK_BLOCK = 1 << 20

H = TypeVar("H", bound=Header)


@dataclass(frozen=True)
class Limits:
    """Bound one message: bytes of its header, bytes of all tensors together, number of tensors, and the bytes of
    safetensors up to which they are in one record with the header.
    """

    header_bytes: int = 1 << 16
    tensor_bytes: int = 1 << 29
    tensors: int = 300
    inline_bytes: int = 1 << 20


DEFAULT_LIMITS = Limits()


def _rule(name: object, rules: Rules) -> TensorRule:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise WireError("unexpected_tensor", "a tensor's name breaks the schema")
    rule = rule_of(name, rules)
    if rule is None:
        raise WireError("unexpected_tensor", f"tensor {name} does not belong to this message")
    return rule


def _check(name: str, rule: TensorRule, dtype: str, shape: tuple[int, ...], size: int) -> None:
    if dtype not in rule.dtypes or dtype not in DTYPES:
        raise WireError("wrong_dtype", f"tensor {name} must be {' or '.join(rule.dtypes)}")
    if len(shape) > MAX_DIMENSIONS or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise WireError("wrong_shape", f"tensor {name} has more than {MAX_DIMENSIONS} dimensions or a negative one")
    elements = 1
    for n in shape:
        elements *= n
        if n > rule.max_elements or elements > rule.max_elements:
            raise WireError("oversized", f"tensor {name} has more than {rule.max_elements} elements")
    if elements * np.dtype(DTYPES[dtype]).itemsize != size:
        raise WireError("wrong_shape", f"tensor {name} of {elements} {dtype} elements cannot fill {size} bytes")


def _check_finite(name: str, flat: NDArray) -> None:
    if flat.dtype.kind == "f":
        for start in range(0, flat.size, _CHECK_BLOCK):
            if not np.isfinite(flat[start : start + _CHECK_BLOCK]).all():
                raise WireError("nan", f"tensor {name} holds a value that is not finite")


def _check_required(names: Mapping[str, object], rules: Rules) -> None:
    for name, rule in rules.items():
        if rule.required and name not in names:
            raise WireError("missing_tensor", f"tensor {name} is missing")


def _check_totals(sizes: list[int], limits: Limits) -> None:
    if len(sizes) > limits.tensors or sum(sizes) > limits.tensor_bytes:
        raise WireError("oversized", f"above {limits.tensors} tensors or {limits.tensor_bytes} bytes of tensors")


def pack(header: Header, tensors: Mapping[str, NDArray], limits: Limits = DEFAULT_LIMITS) -> RecordDict:
    """Pack `header` and `tensors` into a Flower record. Raises WireError on what the receiver would refuse."""
    text = header.model_dump_json()
    if len(text.encode()) > limits.header_bytes:
        raise WireError("oversized", f"the header is above {limits.header_bytes} bytes")
    _check_totals([a.nbytes for a in tensors.values()], limits)
    _check_required(tensors, header.TENSORS)
    raw: dict[str, NDArray] = {}
    for name, value in tensors.items():
        dtype = value.dtype.name
        _check(name, _rule(name, header.TENSORS), dtype, value.shape, value.nbytes)
        raw[name] = np.asarray(value, dtype=DTYPES[dtype], order="C")
        _check_finite(name, raw[name].reshape(-1))
    if sum(each.nbytes for each in raw.values()) <= limits.inline_bytes:
        inline = safetensors.numpy.save(raw)
        if len(inline) <= limits.inline_bytes:
            return RecordDict({HEADER: ConfigRecord({"json": text, INLINE: inline})})
    arrays = {
        name: Array(dtype=each.dtype.name, shape=each.shape, stype=STYPE, data=each.tobytes())
        for name, each in raw.items()
    }
    return RecordDict({HEADER: ConfigRecord({"json": text}), TENSORS: ArrayRecord(arrays)})


def _header(text: object, expected: type[H], limits: Limits) -> H:
    if not isinstance(text, str):
        raise WireError("malformed", "the header is no JSON text")
    if len(text.encode(errors="replace")) > limits.header_bytes:
        raise WireError("oversized", f"the header is above {limits.header_bytes} bytes")
    try:
        return expected.model_validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False, include_context=False)
        fields = [str(fault["loc"][0]) if fault["loc"] else "header" for fault in faults]
        for field, reason in (("version", "wrong_version"), ("message", "wrong_kind")):
            if field in fields and faults[fields.index(field)]["type"] == "literal_error":
                raise WireError(reason, f"expected {expected.__name__}, {field} differs") from None
        known = [field for field in fields if field in {*expected.model_fields, "header"}]
        raise WireError("malformed", f"{expected.__name__}: {known[0] if known else 'an unknown field'}") from None
    except (ValueError, RecursionError):
        raise WireError("malformed", f"the header is no {expected.__name__}") from None


def unpack(record: RecordDict, expected: type[H], limits: Limits = DEFAULT_LIMITS) -> tuple[H, dict[str, NDArray]]:
    """Unpack the header and the named tensors (read-only views of the received bytes).

    Raises WireError on any violation of the schema.

    Error texts repeat nothing that the sender chose, except names that the schema knows.
    """
    config, arrays = (record.get(HEADER), record.get(TENSORS)) if isinstance(record, RecordDict) else (None, None)
    if not isinstance(config, ConfigRecord) or len(record) != (1 if arrays is None else 2):
        raise WireError("malformed", "the message must hold one header record, and at most one of tensors")
    if set(config) != ({"json", INLINE} if arrays is None else {"json"}):
        raise WireError("malformed", "the header record must hold a JSON text, and tensors that are nowhere else")
    header = _header(config["json"], expected, limits)
    given = list(_inline(config[INLINE], limits) if arrays is None else _in_arrays(arrays))
    _check_totals([len(each.data) for each in given], limits)
    _check_required({each.name: each for each in given}, expected.TENSORS)
    tensors: dict[str, NDArray] = {}
    for each in given:
        _check(each.name, _rule(each.name, expected.TENSORS), each.dtype, each.shape, len(each.data))
        flat = np.frombuffer(each.data, dtype=DTYPES[each.dtype])
        _check_finite(each.name, flat)
        value = flat.reshape(each.shape).astype(each.dtype, copy=False)
        value.flags.writeable = False
        tensors[each.name] = value
    return header, tensors


@dataclass(frozen=True)
class _Given:
    """Hold a tensor as it came, unchecked."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _inline(content: object, limits: Limits) -> Iterator[_Given]:
    """Read the tensors in the bytes of safetensors."""
    if not isinstance(content, bytes):
        raise WireError("malformed", "the tensors are no bytes")
    if len(content) > limits.inline_bytes:
        raise WireError("oversized", f"tensors beside the header are above {limits.inline_bytes} bytes")
    try:
        for name, found in safetensors.deserialize(content):
            dtype = _STORED.get(found["dtype"], "unknown")
            yield _Given(name, dtype, tuple(found["shape"]), bytes(found["data"]))
    except SafetensorError:
        raise WireError("malformed", "the tensors are no safetensors") from None


def _in_arrays(arrays: object) -> Iterator[_Given]:
    """Read the tensors of a record of their own."""
    if not isinstance(arrays, ArrayRecord):
        raise WireError("malformed", "the tensor record is of another type")
    for name, array in arrays.items():
        if array.stype != STYPE:
            raise WireError("malformed", "a tensor is not raw bytes")
        yield _Given(name, array.dtype, tuple(array.shape), array.data)
