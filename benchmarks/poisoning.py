"""What liars do to one sum of all phones, and to a median over the sums of small cohorts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import OnPhase, bars
from benchmarks.record import command_line, floats, numbers, of_configuration, open_record, sweep
from benchmarks.trial import Latest
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError

ATTACKS = ("one-class", "sign-flip", "unclipped", "overshoot")
"""`one-class`: all weight on one class, in the block of the phone's own cluster. `sign-flip`: minus the honest vector.
Both clip. `unclipped`: together as large a flat vector as is not discarded, by liars who know all honest vectors.
`overshoot`: each ten times what the whole cohort may weigh.
"""
SHARED = ("visualise.enabled=false", "privacy.min_cohort=20")


@dataclass(frozen=True)
class Design:
    """What all rows have in common. The first `judged` phones never lie; they are judged in all rows. Submodels are
    planned from `images` reference images.
    """

    phones: int
    epsilon: float
    judged: int
    images: int
    overrides: tuple[str, ...] = SHARED

    def config(self, seed: int, noise: bool = True) -> Config:
        """Of one seed."""
        own = [f"population.phones={self.phones}", f"planner.images={self.images}", f"run.seed={seed}"]
        return load_config(
            None, [*own, f"privacy.epsilon={self.epsilon}", f"privacy.noise={str(noise).lower()}", *self.overrides]
        )

    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {
            "phones": self.phones,
            "epsilon": self.epsilon,
            "judged": self.judged,
            "planner_images": self.images,
            **of_configuration(self.config(0)),
        }


@dataclass(eq=False)
class Trial:
    """Measures rows; keys that come sorted share the fleet of their seed, and the honest run of their aggregate."""

    design: Design
    folder: Path
    on_phase: OnPhase = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._of_seed, self._exact, self._honest = Latest(self._draw), Latest(self._without_noise), Latest(self._serve)

    def keys(self, seeds: Sequence[int], shares: Sequence[float], cohorts: Sequence[int]) -> list[dict[str, Any]]:
        """Of all rows; a cohort of 0 is one sum of all."""
        lies = [("none", 0.0), *((attack, share) for attack in ATTACKS for share in sorted(shares) if share)]
        return [
            {"phones": self.design.phones, "attack": attack, "liars": share, "aggregate": aggregate(m), "seed": seed}
            for seed in seeds
            for m in cohorts
            for attack, share in lies
        ]

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of one row; None where the server stopped."""
        from benchmarks.fleet_server import centroid_error

        start = time.process_time()
        seed, name, attack, share = (key[part] for part in ("seed", "aggregate", "attack", "liars"))
        jury, exact = self._of_seed(seed), self._exact(seed)
        served = honest = self._honest(seed, name, "none", 0.0)
        if share:
            served = self._serve(seed, name, attack, share)
        figures: dict[str, Any] = {
            "discarded": served.discarded,
            "clusters": None,
            "centroid_error": None,
            "error_exact": None,
            "served": None,
            "accuracy": None,
            "accuracy_full_limited": jury.of_full["accuracy_full_limited"],
            "macs_ratio": None,
        }
        if served.published:
            found, phones = served.published.centroids, self.design.phones
            figures["clusters"] = len(found)
            for error, other in (("centroid_error", honest), ("error_exact", exact)):
                figures[error] = centroid_error(jury.fleet, phones, found, other.published.centroids)
            figures["served"] = jury.covered(found)
        if served.models:
            judged = jury.of_clusters(served)
            figures |= {figure: judged[figure] for figure in ("accuracy", "macs_ratio")}
        return figures | {"seconds": time.process_time() - start}

    def _draw(self, seed: int) -> Any:
        """The jury of one seed, with its population and fleet."""
        from benchmarks.fleet_server import jury_of

        return jury_of(self.design.config(seed), self.folder, self.design.judged, self.on_phase)

    def _without_noise(self, seed: int) -> Any:
        """One sum, no liars, nothing planned."""
        from benchmarks.liars_server import Lie, serve_liars

        jury = self._of_seed(seed)
        world = replace(jury.world, config=self.design.config(seed, noise=False))
        return serve_liars(world, jury.fleet, Lie(np.zeros(self.design.phones, bool)), False, None)

    def _serve(self, seed: int, name: str, attack: str, share: float) -> Any:
        from benchmarks.liars import chosen
        from benchmarks.liars_server import Lie, serve_liars

        jury, cohort = self._of_seed(seed), cohort_of(name)
        liars = chosen(self.design.phones, self.design.judged, share, seed)
        self.on_phase(f"{attack} {share:g}, {name}", 0, 1)
        return serve_liars(jury.world, jury.fleet, Lie(liars, attack, cohort), True, self._exact(seed).pictures)


def aggregate(cohort: int) -> str:
    """`sum`, or `median of 20`."""
    return f"median of {cohort}" if cohort else "sum"


def cohort_of(name: str) -> int:
    """Inverse of `aggregate`."""
    return 0 if name == "sum" else int(name.rpartition(" ")[2])


def shares_of(text: str) -> list[float]:
    """`0,0.01,0.1` as shares of the phones."""
    found = floats(text)
    if not found or not all(0 <= share <= 0.5 for share in found):
        raise ConfigError(f"liars is {text!r}, must be different shares of at most 0.5 such as 0,0.01,0.1")
    return found


def command(
    file: File,
    liars: Annotated[str, typer.Option(help="Shares of the phones that lie.")] = "0,0.01,0.02,0.05,0.1",
    cohorts: Annotated[str, typer.Option(help="Phones a sum of which a median is taken; 0: one sum.")] = "0,20,50",
    seeds: Annotated[str, typer.Option(help="Seeds: 0..2 or 0,5,7. Phones, liars and noise follow from them.")] = "0",
    phones: Annotated[int, typer.Option(min=40, help="Phones.")] = 1000,
    epsilon: Annotated[float, typer.Option(min=0.1, help="ε of a run.")] = 8.0,
    judged: Annotated[int, typer.Option(min=1, help="Honest phones that are judged, the same in all rows.")] = 100,
    images: Annotated[int, typer.Option(min=20, help="Reference images that a submodel is planned with.")] = 100,
    fresh: Fresh = False,
) -> None:
    """What a share of phones that lie does to private sums, and what a median over cohorts would withstand.

    Medians are worked out here alone: the server takes one sum. A row takes 15 CPU seconds, and a seed's phones 15.
    Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks poisoning --seeds 0..2 --json benchmarks/results/poisoning.json
    """
    shares, sizes, draws = shares_of(liars), numbers(cohorts), numbers(seeds)
    if judged > phones * (1 - max(shares)):
        raise ConfigError(f"judged is {judged}, at most {phones} phones less the liars never lie: lower it")
    if any(0 < m < 20 or m > phones for m in sizes):
        raise ConfigError(
            f"cohorts is {cohorts!r}, must be 0 or from 20 to the {phones} phones: privacy's least cohort"
        )
    design = Design(phones, epsilon, judged, images)
    options: dict[str, str | int | float | None] = {
        "liars": liars,
        "cohorts": cohorts,
        "seeds": seeds,
        "phones": phones,
        "epsilon": epsilon,
        "judged": judged,
        "images": images,
    }
    record = open_record(file, "poisoning", design.settings(), command_line("poisoning", file, **options), fresh)
    with bars("poisoning") as (on_row, on_phase), TemporaryDirectory(prefix="benchmark-") as folder:
        trial = Trial(design, Path(folder), on_phase)
        sweep(record, file, trial.keys(draws, shares, sizes), trial.measure, on_row)
