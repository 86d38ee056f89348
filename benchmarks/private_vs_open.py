"""What privacy costs: the delivered submodels against ε and population, on sums that hold what masked ones would."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Option

from benchmarks.command import SHARED, Benchmark, Measure
from benchmarks.evaluation import Evaluation, centroid_error
from benchmarks.fleet_server import Profiles, Served, courier_args, serve_fleet
from benchmarks.fleet_sums import FleetCourier
from benchmarks.last_call import remembers_last_call
from benchmarks.options import MinCohort, Populations
from benchmarks.progress import OnPhase
from benchmarks.record import Row, floats, numbers, settings_of
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError


@dataclass(frozen=True)
class Population:
    """What the runs of a benchmark have in common: `drawn` phones a seed, of which smaller populations are the first.
    `overrides`: of the shipped configuration, as in `fedcaptor simulate --set`.
    """

    drawn: int
    min_cohort: int
    overrides: tuple[str, ...] = ()

    def config(self, epsilon: float | None, seed: int) -> Config:
        """Return the configuration of one run; None: no noise. Budgets are those of masked sums."""
        noise = "privacy.noise=false" if epsilon is None else f"privacy.epsilon={epsilon}"
        shared = [f"population.phones={self.drawn}", f"privacy.min_cohort={self.min_cohort}", f"run.seed={seed}"]
        return load_config(None, [*shared, noise, *self.overrides])

    def settings(self) -> dict[str, Any]:
        """Return what a record says of it."""
        config = self.config(None, 0)
        shared = {"drawn": self.drawn, "min_cohort": self.min_cohort, "corrupted": config.privacy.noiseless}
        return {**shared, **settings_of(config)}


@dataclass(frozen=True, kw_only=True)
class PrivateVsOpen(Benchmark):
    """What the noise of differential privacy costs, by ε and population: accuracy and MACs of what phones get.

    Sums hold the very vectors and noise that masked ones would; the phones' answers are worked out once and their noise
    is drawn together, so that ten thousand phones take seconds. A row takes 20 to 50 CPU seconds, most of them in
    planning a submodel for each cluster; a seed's first row a minute more. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks private_vs_open --epsilons inf,8,4,2,1 --phones 100,1000,10000 --seeds 0,1,2
    --json benchmarks/results/private_vs_open.json
    """

    epsilons: Annotated[str, Option(help="Values of ε of a run; inf: no noise.")] = "inf,8,4,2,1"
    phones: Populations = "100"
    seeds: Annotated[str, Option(help="Seeds: 0..2 or 0,5,7. Phones, images and noise follow from them.")] = "0"
    min_cohort: MinCohort = 20
    judged: Annotated[int, Option(min=1, help="Phones whose cluster's submodel is judged, alike in all."), SHARED] = 100
    personal: Annotated[int, Option(min=0, help="Phones that personalise too, a CPU second each."), SHARED] = 6

    def __post_init__(self) -> None:
        budgets(self.epsilons)
        largest = max(numbers(self.phones))
        if max(self.personal, self.judged) > largest:
            raise ConfigError(
                f"personal {self.personal} and judged {self.judged} must be at most the largest population {largest}: "
                "lower them"
            )

    @property
    def population(self) -> Population:
        return Population(max(numbers(self.phones)), self.min_cohort)

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), **self.population.settings()}

    def row_keys(self) -> list[Row]:
        """Return the rows without noise first: those of the same seed and population are held against them."""
        ordered = sorted(budgets(self.epsilons), key=lambda e: -math.inf if e is None else -e)
        rows = product(numbers(self.seeds), sorted(numbers(self.phones)), ordered)
        return [{"phones": phones, "epsilon": epsilon, "seed": seed} for seed, phones, epsilon in rows]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            yield PrivacyMeasurement(self.population, self.judged, self.personal, Path(folder), on_phase).measure


@dataclass(eq=False)
class PrivacyMeasurement:
    """Measures rows; keys that come sorted share the fleet of their seed, the pictures of its filters and the server
    without noise. The first `judged` phones are judged in all rows, whether their answers were in the sums or not, the
    first `personal` with the personal step.
    """

    population: Population
    judged: int
    personal: int
    folder: Path
    on_phase: OnPhase
    _profiles: dict[int, Profiles] = field(default_factory=dict)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        start = time.process_time()
        phones, epsilon, seed = key["phones"], key["epsilon"], key["seed"]
        evaluation, exact = self._evaluation(seed), self._exact(seed, phones)
        served = exact if epsilon is None else self._serve(epsilon, seed, phones)
        centroids = served.round.centroids
        figures = {
            "clusters": len(centroids),
            **evaluation.of_full,
            **evaluation.of_clusters(served),
            "accuracy_personal": None,
            "macs_personal": None,
            "macs_effective": None,
            "judged": self.judged,
            "centroid_error": centroid_error(evaluation.fleet, phones, centroids, exact.round.centroids),
            "spent_epsilon": served.epsilon,
        }
        if self.personal:
            figures |= evaluation.of_phones(served, range(self.personal), self.on_phase)
        return figures | {"seconds": time.process_time() - start}

    @remembers_last_call
    def _evaluation(self, seed: int) -> Evaluation:
        return Evaluation.of(self.population.config(None, seed), self.folder, self.judged, self.on_phase)

    @remembers_last_call
    def _exact(self, seed: int, phones: int) -> Served:
        return self._serve(None, seed, phones)

    def _serve(self, epsilon: float | None, seed: int, phones: int) -> Served:
        evaluation = self._evaluation(seed)
        world = replace(evaluation.world, config=self.population.config(epsilon, seed))
        courier = FleetCourier(**courier_args(world, phones), fleet=evaluation.fleet)
        return serve_fleet(world, courier, self._profiles.setdefault(seed, []), on_phase=self.on_phase)


def budgets(text: str) -> list[float | None]:
    """Read `inf,8,2` as values of ε; None for no noise. Raises ConfigError."""
    found = floats(text)
    if not found or not all(value > 0 for value in found):
        raise ConfigError(f"epsilons is {text!r}, must be different values above 0 such as inf,8,2")
    return [None if math.isinf(value) else value for value in found]
