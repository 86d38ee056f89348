"""The search for a planted phone: every form in which its vectors or its identity could lie in a file."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

_DYADIC = 2.0**12
"""Multiples of 1 / 4,096 (0, 1, 0.5 …) are anybody's figures and name no phone."""

Needles = dict[str, bytes]


def of_vector(name: str, vector: NDArray[np.floating], digits: int = 8) -> Needles:
    """A vector as numbers of 8 and 4 bytes and as text of `digits` digits, cut and rounded; each distinctive entry."""
    x = vector.astype("<f8")
    telling = np.rint(x * _DYADIC) != x * _DYADIC
    needles: Needles = {}
    for i in np.flatnonzero(telling):
        needles[f"{name}[{i}] float64"] = x[i : i + 1].tobytes()
        near = x[max(i - 1, 0) : i + 2]  # 4 bytes alone are found by chance
        needles[f"{name}[{i}] float32"] = near.astype("<f4").tobytes()
        if abs(x[i]) > 0.01:
            text = np.format_float_positional(abs(x[i]), unique=True)
            needles[f"{name}[{i}] text"] = text[: 2 + digits].encode()
            needles[f"{name}[{i}] rounded"] = f"{abs(x[i]):.{digits}f}".encode()
    return needles


def of_integers(name: str, values: NDArray[np.integer]) -> Needles:
    """Six neighbours, two of them at 8 or more in size, as integers of 4 and 8 bytes and as a list in text."""
    needles: Needles = {}
    for i in range(values.size - 5):
        near = values[i : i + 6].astype(np.int64)
        if (np.abs(near) >= 8).sum() < 2:
            continue
        needles[f"{name}[{i}:] uint32"] = (near & 0xFFFFFFFF).astype("<u4").tobytes()
        needles[f"{name}[{i}:] int64"] = near.astype("<i8").tobytes()
        needles[f"{name}[{i}:] list"] = ", ".join(map(str, near)).encode()
        needles[f"{name}[{i}:] short list"] = ",".join(map(str, near)).encode()
    return needles


def of_node(node: int, identity: bytes) -> Needles:
    """A node's id (of at least ten digits) and its public identity key."""
    return {
        "node id": str(node).encode(),
        "node id, hexadecimal": f"{node:x}".encode(),
        "node id, 8 bytes": node.to_bytes(8, "little"),
        "identity": identity,
        "identity, hexadecimal": identity.hex().encode(),
    }


def found(needles: Mapping[str, bytes], content: bytes) -> list[str]:
    """Names of the needles that are in a file's content, as it is or inside runs of base64."""
    places = [content, *_decoded(content)]
    return sorted(name for name, needle in needles.items() if any(needle in place for place in places))


def _decoded(content: bytes) -> Iterator[bytes]:
    for run in re.findall(rb"[A-Za-z0-9+/]{24,}={0,2}", content):
        body = run.rstrip(b"=")
        yield base64.b64decode(body[: len(body) // 4 * 4] if len(body) % 4 == 1 else body + b"=" * (-len(body) % 4))
