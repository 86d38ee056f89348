"""What malicious clients do to one sum of all phones, and to a median over the sums of small cohorts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from typer import Option

from benchmarks.command import SHARED, Benchmark, Measure
from benchmarks.evaluation import Evaluation, centroid_error
from benchmarks.fleet_server import Profiles, Served, courier_args, serve_fleet
from benchmarks.last_call import remembers_last_call
from benchmarks.malicious import ATTACKS, MaliciousCourier, malicious_clients
from benchmarks.median_sums import MedianBudget
from benchmarks.progress import OnPhase
from benchmarks.record import Row, floats, numbers, settings_of
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.simulations.runner import World

OVERRIDES = ("visualise.enabled=false", "privacy.min_cohort=20")


@dataclass(frozen=True, kw_only=True)
class Poisoning(Benchmark):
    """What a share of malicious clients does to private sums, and what a median over cohorts would withstand.

    Medians are worked out here alone: the server takes one sum. A row takes 15 CPU seconds, and a seed's phones 15.
    Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks poisoning --seeds 0..2 --json benchmarks/results/poisoning.json
    """

    liars: Annotated[str, Option(help="Shares of the phones that are malicious.")] = "0,0.01,0.02,0.05,0.1"
    cohorts: Annotated[str, Option(help="Phones a sum of which a median is taken; 0: one sum.")] = "0,20,50"
    seeds: Annotated[
        str, Option(help="Seeds: 0..2 or 0,5,7. Phones, malicious clients and noise follow from them.")
    ] = "0"
    phones: Annotated[int, Option(min=40, help="Phones."), SHARED] = 1000
    epsilon: Annotated[float, Option(min=0.1, help="ε of a run."), SHARED] = 8.0
    judged: Annotated[int, Option(min=1, help="Honest phones that are judged, the same in all rows."), SHARED] = 100
    images: Annotated[int, Option(min=20, help="Reference images that a submodel is planned with.")] = 100

    def __post_init__(self) -> None:
        if self.judged > self.phones * (1 - max(shares_of(self.liars))):
            raise ConfigError(
                f"judged is {self.judged}, at most {self.phones} phones less the malicious ones are honest: lower it"
            )
        if any(0 < cohort < 20 or cohort > self.phones for cohort in numbers(self.cohorts)):
            raise ConfigError(
                f"cohorts is {self.cohorts!r}, must be 0 or from 20 to the {self.phones} phones: privacy's least cohort"
            )

    def config(self, seed: int, noise: bool = True, overrides: Sequence[str] = OVERRIDES) -> Config:
        """Return the configuration of one run."""
        own = [f"population.phones={self.phones}", f"planner.images={self.images}", f"run.seed={seed}"]
        privacy = [f"privacy.epsilon={self.epsilon}", f"privacy.noise={str(noise).lower()}"]
        return load_config(None, [*own, *privacy, *overrides])

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), "planner_images": self.images, **settings_of(self.config(0))}

    def row_keys(self) -> list[Row]:
        attacks = [("none", 0.0), *product(ATTACKS, sorted(share for share in shares_of(self.liars) if share))]
        rows = product(numbers(self.seeds), numbers(self.cohorts), attacks)
        return [
            {"phones": self.phones, "attack": attack, "liars": share, "aggregate": aggregate(cohort), "seed": seed}
            for seed, cohort, (attack, share) in rows
        ]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            yield PoisoningMeasurement(self, Path(folder), on_phase).measure


@dataclass(frozen=True, eq=False)
class Outcome:
    """`served`: None where the server stopped. `discarded`: share of the sums."""

    served: Served | None
    discarded: float

    @property
    def centroids(self) -> NDArray[Any]:
        assert self.served is not None  # without noise, or without malicious clients, no sum is discarded
        return self.served.round.centroids


@dataclass(eq=False)
class PoisoningMeasurement:
    """Measures rows; keys that come sorted share the fleet of their seed, and the honest run of their aggregate. The
    first phones, which are judged in all rows, are never malicious.
    """

    settings: Poisoning
    folder: Path
    on_phase: OnPhase
    overrides: Sequence[str] = OVERRIDES
    _profiles: dict[int, Profiles] = field(default_factory=dict)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row; None where the server stopped."""
        start = time.process_time()
        seed, name, attack, share = (key[part] for part in ("seed", "aggregate", "attack", "liars"))
        evaluation, exact, honest = self._evaluation(seed), self._exact(seed), self._honest(seed, name)
        outcome = self._attacked(seed, name, attack, share) if share else honest
        figures: dict[str, Any] = {
            "discarded": outcome.discarded,
            "clusters": None,
            "centroid_error": None,
            "error_exact": None,
            "served": None,
            "accuracy": None,
            "accuracy_full_limited": evaluation.of_full["accuracy_full_limited"],
            "macs_ratio": None,
        }
        if outcome.served:
            found, fleet, phones = outcome.centroids, evaluation.fleet, self.settings.phones
            judged = evaluation.of_clusters(outcome.served)
            figures |= {
                "clusters": len(found),
                "centroid_error": centroid_error(fleet, phones, found, honest.centroids),
                "error_exact": centroid_error(fleet, phones, found, exact.centroids),
                **{figure: judged[figure] for figure in ("served", "accuracy", "macs_ratio")},
            }
        return figures | {"seconds": time.process_time() - start}

    @remembers_last_call
    def _evaluation(self, seed: int) -> Evaluation:
        config = self.settings.config(seed, overrides=self.overrides)
        return Evaluation.of(config, self.folder, self.settings.judged, self.on_phase)

    @remembers_last_call
    def _exact(self, seed: int) -> Outcome:
        """Serve without noise, by one sum, with honest phones alone and nothing planned."""
        evaluation, settings = self._evaluation(seed), self.settings
        world = replace(evaluation.world, config=settings.config(seed, False, self.overrides))
        nobody, profiles = np.zeros(settings.phones, bool), self._profiles.setdefault(seed, [])
        courier = MaliciousCourier(**courier_args(world, settings.phones), fleet=evaluation.fleet, malicious=nobody)
        return serve_attacked(world, courier, profiles, planned=False)

    @remembers_last_call
    def _honest(self, seed: int, name: str) -> Outcome:
        return self._attacked(seed, name, "none", 0.0)

    def _attacked(self, seed: int, name: str, attack: str, share: float) -> Outcome:
        evaluation, phones = self._evaluation(seed), self.settings.phones
        malicious = malicious_clients(phones, self.settings.judged, share, seed)
        self.on_phase(f"{attack} {share:g}, {name}", 0, 1)
        courier = MaliciousCourier(
            **courier_args(evaluation.world, phones),
            fleet=evaluation.fleet,
            malicious=malicious,
            attack=attack,
            cohort=cohort_of(name),
        )
        return serve_attacked(evaluation.world, courier, self._profiles[seed])


def serve_attacked(world: World, courier: MaliciousCourier, profiles: Profiles, planned: bool = True) -> Outcome:
    """Serve one round up to its plans, by medians where the courier has cohorts."""
    budget = None
    if courier.cohort:
        budget = MedianBudget(world.config, world.base.groups, len(courier.malicious), courier.cohort)
    try:
        served: Served | None = serve_fleet(world, courier, profiles, planned=planned, delivered=False, budget=budget)
    except PrivacyError:
        served = None
    return Outcome(served, float(np.mean(courier.discarded)))


def aggregate(cohort: int) -> str:
    """Return `sum`, or `median of 20`."""
    return f"median of {cohort}" if cohort else "sum"


def cohort_of(name: str) -> int:
    """Return the inverse of `aggregate`."""
    return 0 if name == "sum" else int(name.rpartition(" ")[2])


def shares_of(text: str) -> list[float]:
    """Read `0,0.01,0.1` as shares of the phones. Raises ConfigError."""
    found = floats(text)
    if not found or not all(0 <= share <= 0.5 for share in found):
        raise ConfigError(f"liars is {text!r}, must be different shares of at most 0.5 such as 0,0.01,0.1")
    return found
