"""`.npz` files: any archive, or one of any members whose checksums are right."""

from __future__ import annotations

import io
import zipfile
from unittest.mock import patch

import numpy as np

from fedcaptor.common.data.source import load
from fedcaptor.common.errors import DataError
from tests.fuzz.files import file_of
from tests.fuzz.parts import chosen, join, split

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ARCHIVE, MEMBERS = b"\0", b"\1"


def seeds() -> dict[str, bytes]:
    arrays = {
        "x": np.arange(16, dtype=np.uint8).reshape(4, 2, 2),
        "y": np.array([0, 1, 0, 1]),
        "names": np.array(["cat", "dog"]),
        "owner": np.array([3, 0, 0, 1]),
        "split": np.array(["train", "train", "test", "validation"]),
    }
    parts: list[bytes] = []
    for number, (key, array) in enumerate(arrays.items()):
        member = io.BytesIO()
        np.lib.format.write_array(member, array)
        parts += [bytes([number % 2]), f"{key}.npy".encode(), member.getvalue()]  # numpy stores or deflates
    whole = io.BytesIO()
    np.savez_compressed(whole, x=arrays["x"], y=arrays["y"])
    return {"members": MEMBERS + join(*parts), "archive": ARCHIVE + whole.getvalue()}


def one(data: bytes) -> bool:
    with file_of(_archive(data[1:]) if data[:1] == MEMBERS else data[1:], "images.npz") as path:
        try:
            load(str(path))
        except DataError:
            return False
    return True


def _archive(data: bytes) -> bytes:
    parts, file = split(data), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, patch("warnings.warn"):  # about a name that is there twice
        for method, name, member in zip(parts[0::3], parts[1::3], parts[2::3], strict=False):
            info = zipfile.ZipInfo(name.decode(errors="replace")[:99] or "x.npy")
            archive.writestr(info, member, METHODS[chosen(method, len(METHODS))])
    return file.getvalue()
