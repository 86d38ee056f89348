"""The picture that holds a delivery's reference images."""

from __future__ import annotations

import numpy as np

from fedcaptor.common.data.mosaic import code, decode
from fedcaptor.common.errors import DataError

COUNT, SHAPES = 3, ((1, 9, 8), (3, 9, 8))


def seeds() -> dict[str, bytes]:
    found = {}
    for number, (channels, height, width) in enumerate(SHAPES):
        images = np.random.default_rng(0).integers(0, 256, (COUNT, height, width, channels), dtype=np.uint8)
        for lossless in (True, False):
            name = f"{channels}-channels.{'png' if lossless else 'jpg'}"
            found[name] = bytes([number]) + code(images, lossless).tobytes()
    return found


def one(data: bytes) -> bool:
    shape = SHAPES[data[0] % len(SHAPES) if data else 0]
    try:
        images = decode(np.frombuffer(data[1:], np.uint8), COUNT, shape)
    except DataError:
        return False
    assert images.shape == (COUNT, *shape[1:], shape[0])
    return True
