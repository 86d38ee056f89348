"""What federation brings: the same phones, seeds, budget and ε, with one part more from arm to arm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.options import MinCohort
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers, settings_of
from benchmarks.stopwatch import Stopwatch
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError
from fedcaptor.simulations.local_grid import VirtualClock
from fedcaptor.simulations.owners_world import SOURCE as OWNERS
from fedcaptor.simulations.runner import World, local_grid, remove_run, run_rounds, simulate, weights_of

NO_SCORES = ("scores.enabled=false", "visualise.enabled=false")
NO_CLUSTERS = ("clusters.k=1", "usage.prior=0", "delivery.plans=false")
NO_REFERENCE = ("personal.reference=0",)
ONE_FOR_ALL = ("personal.enabled=false", "planner.by_usage=false")

ARMS: dict[str, tuple[str, ...]] = {
    "alone": (*NO_REFERENCE, *NO_CLUSTERS, *NO_SCORES),
    "reference": (*NO_CLUSTERS, *NO_SCORES),
    "clusters": NO_SCORES,
    "scores": (),
    "one-for-all": (*ONE_FOR_ALL, *NO_REFERENCE, *NO_CLUSTERS, *NO_SCORES),
}
"""Overrides of the shipped configuration. `scores` is the shipped one: all parts on."""

CHECK_SHARE, FEWEST_CHECKS = 2 / 3, 8
WORLDS = ("habits", "owners")
OWN_IMAGES = 0
"""What a row has for the number of images where each owner has a number of her own."""


@dataclass(frozen=True, kw_only=True)
class Federation(Benchmark):
    """What federation brings over a phone alone, and over one submodel for all.

    Arms, each with one part more: alone (own images only), + the server's reference images, + private usage clusters,
    + private filter scores; and one submodel of all classes for everybody. A row takes one or two minutes with
    100 phones. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks federation --seeds 0..2 --images 100,30,12 --json benchmarks/results/federation.json
    """

    seeds: Annotated[str, Option(help="Seeds: 0..2 or 0,5,7. Phones, images and noise follow from them.")] = "0"
    images: Annotated[str, Option(help="Images a phone learns its owner from, one or more numbers.")] = "100"
    world: Annotated[
        str, Option(help="habits, or owners: natural owners with few images each, all their own."), SHARED
    ] = "habits"
    phones: Annotated[int, Option(min=20, help="Simulated phones."), SHARED] = 100
    min_cohort: MinCohort = 20
    epsilon: Annotated[float, Option(help="privacy.epsilon of each run."), SHARED] = 8.0
    keep: Annotated[Path | None, Option(help="Keep each run's folder in this one.")] = None

    def config(self, arm: str, images: int, seed: int) -> Config:
        """Return the configuration of one run: `images` a phone to learn from, check images in proportion."""
        if self.world == "owners":
            world = [f"data.source={OWNERS}", "population.law=owners"]
        else:
            checks = max(FEWEST_CHECKS, round(CHECK_SHARE * images))
            world = [f"population.use_images={images}", f"population.check_images={checks}"]
        return load_config(
            None,
            [
                *world,
                f"population.phones={self.phones}",
                f"privacy.min_cohort={self.min_cohort}",
                f"privacy.epsilon={self.epsilon}",
                f"run.seed={seed}",
                *ARMS[arm],
            ],
        )

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise ConfigError(f"world is {self.world!r}, must be one of {', '.join(WORLDS)}")

    def shared(self) -> dict[str, Any]:
        config = self.config("scores", 60, 0)
        return {**super().shared(), **settings_of(config), "ladder": list(config.personal.ladder)}

    def options(self) -> dict[str, Any]:
        return {**super().options(), "keep": None}

    def row_keys(self) -> list[Row]:
        images = [OWN_IMAGES] if self.world == "owners" else numbers(self.images)
        rows = product(numbers(self.seeds), images, ARMS)
        return [{"arm": arm, "images": images, "seed": seed} for seed, images, arm in rows]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Simulate once; return the figures of its row."""
        config, watch = self.config(key["arm"], key["images"], key["seed"]), Stopwatch()

        def engine(world: World) -> Any:
            clock = VirtualClock()
            return run_rounds(world, local_grid(world, clock, watch.around), on_phase, clock)

        with self._folder(key) as directory:
            summary = simulate(config, directory, on_phase, engine)
            phones = json.loads((directory / "details.json").read_text())["phones"]
        seconds = {
            "personal_seconds": watch.each("query.deliver", self.phones),
            "sums_seconds": watch.each("query.masked", self.phones),
        }
        figures = _of_phones if config.personal.enabled else _of_the_shared_model
        return figures(summary, phones, weights_of(config).stat().st_size) | _reference_lines(summary) | seconds

    @contextmanager
    def _folder(self, key: Mapping[str, Any]) -> Iterator[Path]:
        """Give a folder that goes away with its row, or a new one under `keep`: half a run has no timing."""
        if self.keep is None:
            with TemporaryDirectory(prefix="benchmark-") as folder:
                yield Path(folder)
        else:
            kept = self.keep / "-".join(str(value) for value in key.values())
            remove_run(kept)
            yield kept


def _reference_lines(summary: Mapping[str, Any]) -> dict[str, Any]:
    accuracy = summary["accuracy"]
    return {
        "full": accuracy["full"]["mean"],
        "full_p5": accuracy["full"]["p5"],
        "full_limited": accuracy["full_limited"]["mean"],
        "full_limited_p5": accuracy["full_limited"]["p5"],
        "clusters": summary["clusters"],
        "spent_epsilon": summary["privacy"]["epsilon"],
    }


def _of_phones(summary: Mapping[str, Any], phones: Mapping[str, Any], weights_bytes: int) -> dict[str, Any]:
    """Return what each phone ended with; `kept_full`: share of phones that found no submodel good enough."""
    return {
        "accuracy": summary["accuracy"]["personalised"]["mean"],
        "accuracy_p5": summary["accuracy"]["personalised"]["p5"],
        "effective_macs": summary["effective_macs_ratio"],
        "escalated": summary["out_of_set"]["escalated_ratio"],
        "macs": summary["macs_ratio"],
        "kept_full": sum(ratio == 1 for ratio in phones["macs_ratio"]) / len(phones["macs_ratio"]),
        "download_bytes": int(phones["download_bytes"][0]),
    }


def _of_the_shared_model(summary: Mapping[str, Any], phones: Mapping[str, Any], weights_bytes: int) -> dict[str, Any]:
    """Return figures of the one submodel of all classes, which is downloaded whole; nothing falls back."""
    shared = summary["cluster_only"]
    return {
        "accuracy": shared["accuracy_limited"]["mean"],
        "accuracy_p5": shared["accuracy_limited"]["p5"],
        "unlimited": shared["accuracy"]["mean"],
        "unlimited_p5": shared["accuracy"]["p5"],
        "effective_macs": shared["effective_macs_ratio"],
        "escalated": 0.0,
        "macs": shared["macs_ratio"],
        "kept_full": 0.0,
        "download_bytes": round(shared["parameters_ratio"] * weights_bytes),
    }
