"""One file of an image folder, whatever its content; its name alone says that it is an image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fedcaptor.common.data.source import SUFFIXES, decode
from fedcaptor.common.errors import DataError
from tests.fuzz.files import file_of

FORMATS = {
    "grey.png": ("PNG", "L"),
    "rgb.jpg": ("JPEG", "RGB"),
    "rgb.bmp": ("BMP", "RGB"),
    "alpha.webp": ("WEBP", "RGBA"),
}


def seeds() -> dict[str, bytes]:
    found = {}
    for name, (kind, mode) in FORMATS.items():
        file = io.BytesIO()
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3).convert(mode).save(file, kind)
        suffix = next(i for i, each in enumerate(SUFFIXES) if name.endswith(each))
        found[name] = bytes([suffix]) + file.getvalue()
    return found


def one(data: bytes) -> bool:
    suffix = SUFFIXES[data[0] % len(SUFFIXES) if data else 0]
    with file_of(data[1:], f"one{suffix}") as path:
        try:
            images = decode(path.parent, [path])
        except DataError:
            return False
    assert images.dtype == np.uint8
    return True
