"""Find preference clusters from local answers: each phone's own randomised answer, without cohorts or sums.

All of it is post-processing of one answer from each phone. Answers are held in memory while the phase lasts, packed,
and are never stored: a restart asks again and gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats
from fedcaptor.common.config import Clusters
from fedcaptor.common.config import Privacy as Settings
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.local import Bits, LocalSpec
from fedcaptor.common.statistics.usage import cooccurrence_matrix
from fedcaptor.server import clusters
from fedcaptor.server.local_design import best_local_spec

MAX_BYTES = 1 << 30
"""Most bytes that all answers together may take."""

STEPS = 6
"""Steps of expectation maximisation. More would fit the noise (`python -m benchmarks local_privacy`)."""

_CHUNK = 1 << 22  # bits as floats at a time


@dataclass(frozen=True)
class LocalBudget:
    """Take the place of a `SumBudget`: one answer a run is charged, and what is made of it costs nothing more."""

    spec: LocalSpec
    cohort: int

    @classmethod
    def of(cls, settings: Settings, classes: int, phones: int, asked: int) -> LocalBudget:
        """Make the budget of a run over `phones` phones, of which `asked` (`rounds.cohort`, 0: all) answer.

        Raises PrivacyError where ε is out of reach or the answers do not fit in memory.
        """
        budget = cls(best_local_spec(classes, settings.epsilon), min(phones, asked or phones))
        size = budget.cohort * -(-budget.spec.length // 8)
        if size > MAX_BYTES:
            raise PrivacyError(
                f"{budget.cohort} answers over {classes} classes take {size} bytes, the bound is {MAX_BYTES}: "
                "lower rounds.cohort, or use masked sums"
            )
        return budget

    def epsilon(self, specs: Iterable[Any]) -> float:
        """Return the ε at δ = 0 of a run in which `specs` were answered."""
        return self.spec.epsilon if any(True for _ in specs) else 0.0

    epsilon_server = epsilon
    """ε towards a server that deviates is equal, as nobody is trusted."""

    def for_phones(self, phones: int) -> LocalBudget:
        """Return itself: phones are asked in a run's first round alone."""
        return self

    def fits(self, answered: Sequence[Any], round: Sequence[Any], spare: int) -> bool:
        """Tell that a round without sums costs nothing."""
        return True

    def describe(self, spec: LocalSpec) -> dict[str, Any]:
        """Return what `details.json` says of the answer."""
        return {"name": spec.name, "length": spec.length, "deviation": spec.deviation * math.sqrt(self.cohort)}


class Answers:
    """Collect answers as they come, at most `capacity`, as uint8 [phones, bytes]."""

    def __init__(self, spec: LocalSpec, capacity: int) -> None:
        self.spec, self.phones = spec, 0
        self._rows = np.empty((capacity, -(-spec.length // 8)), np.uint8)

    def add(self, answer: Bits) -> None:
        """Add one answer. Raises PrivacyError on one that no phone can have drawn."""
        self.spec.check(answer)
        self._rows[self.phones] = answer
        self.phones += 1

    def ones(self) -> Floats:
        """Return how many phones sent a one, for each bit [length]."""
        return sum((part.sum(0, dtype=np.float64) for part in self.parts()), np.zeros(self.spec.length))

    def parts(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the bits, some phones at a time [n, length]."""
        step = max(_CHUNK // self.spec.length, 1)
        for start in range(0, self.phones, step):
            rows = self._rows[start : min(start + step, self.phones)]
            yield np.unpackbits(rows, axis=1, count=self.spec.length).astype(np.float32)


def published(answers: Answers, settings: Clusters, seed: int) -> tuple[Floats, Floats]:
    """Return the centroids [K, C] that are published and the phones of each [K], which are `smallest` at least.

    Raises PrivacyError when nobody answered.
    """
    spec, phones = answers.spec, answers.phones
    if phones == 0:
        raise PrivacyError("no phone answered: look whether they are configured with privacy.sums local")
    k = settings.k or min(settings.most, spec.classes)
    pairs = cooccurrence_matrix(spec.cooccurrence(answers.ones(), phones), spec.classes)
    first = clusters.first_centroids(pairs, k, seed, settings.method)
    centroids, counts = fit(answers, first, STEPS)
    return clusters.publishable(centroids, counts, smallest(spec, phones), settings.alike, settings.k == 0)


def smallest(spec: LocalSpec, phones: int) -> float:
    """Return the fewest phones of a cluster that answers of so many `phones` can show.

    It is two standard deviations, by flipped bits, of how much of the usage of all is of one class. A smaller cluster
    may be noise in its main class.
    """
    return 2 * spec.deviation * math.sqrt(phones)


def fit(answers: Answers, first: Floats, steps: int) -> tuple[Floats, Floats]:
    """Fit centroids [K, C] and phones of each [K] by expectation maximisation from `first`.

    The model: a phone's pair is two draws from its cluster's centroid, and its randomised bits are what is seen.

    Bits b have under the pair j a probability proportional to 1 + (e^ε − 1)·b_j.
    """
    rows, columns = np.triu_indices(answers.spec.classes)
    ordered = np.where(rows == columns, 1.0, 2.0)
    gain = math.exp(answers.spec.epsilon) - 1
    centroids, weights = first, np.full(len(first), 1 / len(first))
    for _ in range(steps):
        pairs = centroids[:, rows] * centroids[:, columns] * ordered  # [K, length], rows sum to one
        met, belonging = np.zeros_like(pairs), np.zeros(len(first))
        for bits in answers.parts():
            likelihood = 1 + gain * (bits @ pairs.T)  # [n, K]
            share = weights * likelihood
            share /= share.sum(1, keepdims=True)
            met += (share / likelihood).sum(0)[:, None] + gain * ((share / likelihood).T @ bits)
            belonging += share.sum(0)
        centroids = _classes_of(met * pairs, centroids)
        weights = belonging / belonging.sum()
    return centroids, weights * answers.phones


def _classes_of(pairs: Floats, before: Floats) -> Floats:
    """Return the shares [K, C] of the classes in expected pairs [K, length]; a cluster without any keeps its own."""
    rows, columns = np.triu_indices(before.shape[1])
    found = np.zeros_like(before)
    for k, of_cluster in enumerate(pairs):
        found[k] = np.bincount(rows, of_cluster, before.shape[1]) + np.bincount(columns, of_cluster, before.shape[1])
    total = found.sum(1, keepdims=True)
    return np.where(total > 1e-9, found / np.maximum(total, 1e-9), before)
