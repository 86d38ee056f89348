"""Phones that poison sums, and the server's sum of all or its median over the sums of small cohorts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from benchmarks.fleet import Alter, FleetCourier
from fedcaptor.common.arrays import Floats, Indices, Tensors
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.random_streams import Stream, stream, stream_of_digest
from fedcaptor.server import plausible
from fedcaptor.server.collect import Tally
from fedcaptor.simulations.local_grid import FIRST_NODE

_QUIET = 4.0  # deviations of the noise that liars who must not be discarded keep below the bounds


@dataclass(frozen=True, kw_only=True)
class LiarsCourier(FleetCourier):
    """`liars` [N]: who lies. `attack`: how (`benchmarks.poisoning.ATTACKS`). `target`: the class of `one-class`.
    `cohort`: phones in each of the sums of which the median is taken, 0: one sum of all. `verdicts`: of every sum,
    whether it was discarded.
    """

    attack: str
    liars: NDArray[np.bool_]
    target: int = 0
    cohort: int = 0
    verdicts: list[bool] = field(default_factory=list)

    def sum(
        self, round: int, kind: Any, spec: SumSpec, tensors: Tensors, nodes: Iterable[int]
    ) -> tuple[NDArray[Any], Tally]:
        """Of all phones, whatever nodes are named. Raises PrivacyError when no sum is left."""
        everybody = len(self.liars)
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
        """The sum of one cohort; None where it was discarded."""
        courier = FleetCourier(
            self.grid,
            self.run,
            self.rounds,
            None,
            fleet=self.fleet,
            seed=(*self.seed, number) if self.cohort else self.seed,
            before_clip=self._lie(spec),
            after_clip=self._boost(self._factor(kind, spec, tensors, phones)),
        )
        try:
            total, _ = courier.sum(1, kind, spec, tensors, phones + FIRST_NODE)
        except PrivacyError:
            self.verdicts.append(True)
            return None
        self.verdicts.append(False)
        return total

    def _lie(self, spec: SumSpec) -> Alter:
        def lie(kind: str, numbers: Indices, vectors: NDArray[Any]) -> NDArray[Any]:
            out, lying = np.array(vectors, dtype=np.float64), self.liars[numbers]
            out[lying] = (
                lies(self.attack, kind, out[lying] / spec.clip, self.fleet.groups.classes, self.target) * spec.clip
            )
            return out

        return lie

    def _boost(self, factor: int) -> Alter:
        def boost(kind: str, numbers: Indices, quanta: NDArray[Any]) -> NDArray[Any]:
            return quanta * np.where(self.liars[numbers], factor, 1)[:, None]

        return boost

    def _factor(self, kind: Any, spec: SumSpec, tensors: Tensors, phones: Indices) -> int:
        """As how many clipped phones each liar of a cohort counts."""
        lying = self.liars[phones]
        if self.attack == "overshoot":
            return 10 * len(phones)
        if self.attack != "unclipped" or not lying.any():
            return 1
        honest = self.fleet.vectors(kind, phones[~lying], tensors).sum(0)
        return max(1, math.floor(room(honest, spec, len(phones)) / spec.clip / int(lying.sum())))


def lies(attack: str, kind: str, honest: Floats, classes: int, target: int) -> Floats:
    """What liars add instead of `honest` [n, length], over the clip; all of norm 1 at most."""
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


def room(honest: Floats, spec: SumSpec, replies: int) -> float:
    """Norm of the largest flat vector beside the sum `honest` [length] that `plausible.check` lets pass; with the noise
    that is all but certain.
    """
    allowed, deviation = plausible.bounds(spec, replies), math.sqrt(replies * spec.share_variance) / spec.scale
    norm = allowed.norm - deviation * (math.sqrt(spec.length) + _QUIET)
    along = float(honest.sum()) / math.sqrt(spec.length)
    by_norm = math.sqrt(max(norm**2 - float(honest @ honest) + along**2, 0.0)) - along
    by_entry = (allowed.largest - _QUIET * deviation - float(honest.max())) * math.sqrt(spec.length)
    return max(min(by_norm, by_entry), 0.0)


def chosen(phones: int, honest: int, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Who lies [phones], never the first `honest`; of a larger share the same and more."""
    order = stream(seed, Stream.MALICIOUS).permutation(np.arange(honest, phones))
    return np.isin(np.arange(phones), order[: round(share * phones)])


def _diagonal(classes: int, target: int) -> Floats:
    rows, columns = np.triu_indices(classes)
    return np.asarray((rows == target) & (columns == target), dtype=np.float64)
