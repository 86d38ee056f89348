"""Pack vectors of `bits`-bit entries (8 to 32) without gaps: entry i is at bits i x bits and on, little-endian.

Eight entries fill `bits` bytes, so every eighth entry starts at the same bit of a byte, `bits` bytes further on: each
of the eight series is one strided pass of 64-bit words, which do not overlap as a stride has at least 8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def packed_size(length: int, bits: int) -> int:
    """Return how many bytes `length` entries take."""
    return (length * bits + 7) // 8


def pack(values: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Pack the entries modulo 2**bits into uint8 [packed_size]."""
    out = np.zeros(packed_size(values.size, bits) + 8, np.uint8)
    for first, shift, words in _series(out, values.size, bits):
        words |= (values[first::8] & np.uint64(2**bits - 1)) << shift
    return out[:-8]


def add_packed(total: NDArray[np.uint32], packed: NDArray[np.uint8], bits: int) -> None:
    """Add packed entries to `total` in place, modulo 2**32."""
    padded = np.concatenate([packed, np.zeros(8, np.uint8)])
    for first, shift, words in _series(padded, total.size, bits):
        total[first::8] += ((words >> shift) & np.uint64(2**bits - 1)).astype(np.uint32)


def _series(buffer: NDArray[np.uint8], length: int, bits: int) -> Iterator[tuple[int, np.uint64, NDArray[np.uint64]]]:
    """Yield (first entry, shift, words [entries]) of each eighth; words are views of `buffer`, 8 bytes longer."""
    for first in range(min(8, length)):
        offset, shift = divmod(first * bits, 8)
        count = (length - first + 7) // 8
        yield first, np.uint64(shift), np.ndarray((count,), "<u8", buffer.data, offset, (bits,))
