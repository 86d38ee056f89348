"""Malicious clients that poison sums, and the server's sum of all or its median over the sums of small cohorts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.fleet_sums import Fleet, FleetCourier, fleet_sum
from fedcaptor.common.arrays import Floats, Indices, Tensors
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.random_streams import Stream, stream, stream_of_digest
from fedcaptor.server import plausible
from fedcaptor.server.collect import Tally
from fedcaptor.server.sum_log import SumLog

ATTACKS = ("one-class", "sign-flip", "unclipped", "overshoot")
"""`one-class`: all weight on one class, in the block of the phone's own cluster. `sign-flip`: minus the honest vector.
Both clip. `unclipped`: together as large a flat vector as is not discarded, by clients who know all honest vectors.
`overshoot`: each ten times what the whole cohort may weigh.
"""
_MARGIN = 4.0  # deviations of the noise that clients who must not be found out keep below the bounds


@dataclass(frozen=True, kw_only=True)
class MaliciousCourier(FleetCourier):
    """Answers from a fleet with malicious clients [N], who make an `attack` of `ATTACKS`, `none` before they do.
    `target`: the class of `one-class`. `cohort`: phones in each of the sums of which the median is taken, 0: one sum of
    all. `discarded`: of every sum, whether it was.
    """

    fleet: Fleet
    malicious: NDArray[np.bool_]
    attack: str = "none"
    target: int = 0
    cohort: int = 0
    discarded: list[bool] = field(default_factory=list)

    def sum(
        self,
        round: int,
        kind: Any,
        spec: SumSpec,
        tensors: Tensors,
        nodes: Iterable[int],
        log: SumLog | None = None,
    ) -> tuple[NDArray[Any], Tally]:
        """Sum over all phones, whatever nodes are named. Raises PrivacyError when no sum is left."""
        everybody = len(self.malicious)
        parts = np.arange(everybody)[None]
        if self.cohort:
            order = stream_of_digest(self.seed, spec.digest, 15).permutation(everybody)
            parts = np.sort(order[: everybody // self.cohort * self.cohort].reshape(-1, self.cohort))
        sums = [self._of_cohort(kind, spec, tensors, part, number) for number, part in enumerate(parts)]
        kept = [total for total in sums if total is not None]
        if not kept:
            raise PrivacyError(f"sum {spec.name}: all {len(parts)} sums are discarded; ask other phones")
        return np.median(kept, axis=0) * len(parts), Tally(asked=everybody, replies=everybody)

    def _of_cohort(
        self, kind: Any, spec: SumSpec, tensors: Tensors, phones: Indices, number: int
    ) -> NDArray[Any] | None:
        """Return the sum of one cohort; None where it was discarded."""
        factor = self._factor(kind, spec, tensors, phones)

        def poison(kind: str, numbers: Indices, vectors: NDArray[Any]) -> NDArray[Any]:
            out, mine = np.array(vectors, dtype=np.float64), self.malicious[numbers]
            classes = self.fleet.groups.classes
            out[mine] = poisoned(self.attack, kind, out[mine] / spec.clip, classes, self.target) * spec.clip
            return out

        def multiply(kind: str, numbers: Indices, quanta: NDArray[Any]) -> NDArray[Any]:
            return quanta * np.where(self.malicious[numbers], factor, 1)[:, None]

        rng = stream_of_digest((*self.seed, number) if self.cohort else self.seed, spec.digest, 15)
        total = fleet_sum(self.fleet, kind, spec, tensors, phones, rng, poison, multiply)
        try:
            plausible.check(total, spec, len(phones))
        except PrivacyError:
            self.discarded.append(True)
            return None
        self.discarded.append(False)
        return total

    def _factor(self, kind: Any, spec: SumSpec, tensors: Tensors, phones: Indices) -> int:
        """Return as how many clipped phones each malicious client of a cohort counts."""
        mine = self.malicious[phones]
        if self.attack == "overshoot":
            return 10 * len(phones)
        if self.attack != "unclipped" or not mine.any():
            return 1
        honest = self.fleet.vectors(kind, phones[~mine], tensors).sum(0)
        return max(1, math.floor(undetected_norm(honest, spec, len(phones)) / spec.clip / int(mine.sum())))


def poisoned(attack: str, kind: str, honest: Floats, classes: int, target: int) -> Floats:
    """Return what malicious clients add instead of `honest` [n, length], over the clip; all of norm 1 at most."""
    if attack == "sign-flip":
        return np.negative(honest)
    if attack in ("unclipped", "overshoot"):
        return np.full(honest.shape, 1 / math.sqrt(honest.shape[1]))
    blocks = np.zeros((len(honest), honest.shape[1] // classes, classes))
    if kind == "usage" and honest.shape[1] == classes * (classes + 1) // 2:  # co-occurrence: the diagonal's entry
        return np.tile(_diagonal(classes, target), (len(honest), 1))
    if kind == "usage":
        own = np.abs(honest.reshape(blocks.shape)).sum(2).argmax(1)
        blocks[np.arange(len(honest)), own, target] = 1.0
    elif kind == "scores":  # no filter is better than another for the target, and nobody has another class
        blocks[:, :, target] = 1 / math.sqrt(2 * (blocks.shape[1] - 1))
        blocks[:, -1, target] = 1 / math.sqrt(2)
    return np.asarray(blocks.reshape(honest.shape))


def undetected_norm(honest: Floats, spec: SumSpec, replies: int) -> float:
    """Return the norm of the largest flat vector beside the sum `honest` [length] that `plausible.check` lets pass;
    with the noise that is all but certain.
    """
    allowed, deviation = plausible.bounds(spec, replies), math.sqrt(replies * spec.share_variance) / spec.scale
    norm = allowed.norm - deviation * (math.sqrt(spec.length) + _MARGIN)
    along = float(honest.sum()) / math.sqrt(spec.length)
    by_norm = math.sqrt(max(norm**2 - float(honest @ honest) + along**2, 0.0)) - along
    by_entry = (allowed.largest - _MARGIN * deviation - float(honest.max())) * math.sqrt(spec.length)
    return max(min(by_norm, by_entry), 0.0)


def malicious_clients(phones: int, honest: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the malicious ones [phones], never the first `honest`; of a larger share the same and more."""
    order = stream(seed, Stream.MALICIOUS).permutation(np.arange(honest, phones))
    return np.isin(np.arange(phones), order[: round(share * phones)])


def _diagonal(classes: int, target: int) -> Floats:
    rows, columns = np.triu_indices(classes)
    return np.asarray((rows == target) & (columns == target), dtype=np.float64)
