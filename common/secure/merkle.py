"""Build a Merkle tree over a list of fixed length, with one proof for several leaves.

A node of one level is H(1, left, right); the last of an odd level moves up as it is; the root is H(2, n, top). The
length is in the root and every leaf's place follows from it, so no leaf can be taken for a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Hash = bytes


def leaf(content: bytes) -> Hash:
    """Hash one entry of the list to 32 bytes."""
    return hashlib.sha256(b"\x00" + content).digest()


class MerkleTree:
    """Hold all levels of the tree over `leaves`, of which there must be one at least."""

    def __init__(self, leaves: Sequence[Hash]) -> None:
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            self._levels.append(pairs + level[len(level) & ~1 :])

    @property
    def root(self) -> Hash:
        """Return 32 bytes that commit to every leaf, its place and their number."""
        return _root(len(self._levels[0]), self._levels[-1][0])

    def prove(self, places: Sequence[int]) -> list[Hash]:
        """Return the hashes that the leaves at `places` lack for the root: by level from the leaves, by place."""
        proof: list[Hash] = []
        known = sorted(set(places))
        for level in self._levels[:-1]:
            held = set(known)
            proof += [level[i ^ 1] for i in known if i ^ 1 not in held and i ^ 1 < len(level)]
            known = sorted({i // 2 for i in known})
        return proof


def root_of(count: int, leaves: dict[int, Hash], proof: Sequence[Hash]) -> Hash | None:
    """Return the root that `leaves`, by place, and their proof give; None for a proof too long or too short."""
    rest, known, width = iter(proof), dict(sorted(leaves.items())), count
    while width > 1:
        above: dict[int, Hash] = {}
        for place, value in known.items():
            if place // 2 in above:
                continue
            other = known.get(place ^ 1) if place ^ 1 < width else b""
            if other is None and (other := next(rest, None)) is None:
                return None
            above[place // 2] = value if not other else _node(*((other, value) if place & 1 else (value, other)))
        known, width = above, (width + 1) // 2
    return _root(count, known[0]) if next(rest, None) is None else None


def _node(left: Hash, right: Hash) -> Hash:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _root(count: int, top: Hash) -> Hash:
    return hashlib.sha256(b"\x02" + count.to_bytes(4, "little") + top).digest()
