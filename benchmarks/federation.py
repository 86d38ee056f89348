"""What federation brings: the same phones, seeds, budget and ε, with one part more from arm to arm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, sweep
from fedcaptor.common.config import Config, load_config

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


@dataclass(frozen=True)
class Fleet:
    """What all rows have in common."""

    phones: int
    min_cohort: int
    epsilon: float

    def config(self, arm: str, images: int, seed: int) -> Config:
        """One run: `images` a phone to learn from, check images in proportion."""
        return load_config(
            None,
            [
                f"population.phones={self.phones}",
                f"population.use_images={images}",
                f"population.check_images={max(FEWEST_CHECKS, round(CHECK_SHARE * images))}",
                f"privacy.min_cohort={self.min_cohort}",
                f"privacy.epsilon={self.epsilon}",
                f"run.seed={seed}",
                *ARMS[arm],
            ],
        )

    def settings(self) -> dict[str, Any]:
        """For the record: the digest stands for every other key."""
        config = self.config("scores", 60, 0)
        return {
            "phones": self.phones,
            "min_cohort": self.min_cohort,
            "epsilon": self.epsilon,
            "delta": config.privacy.delta,
            "model": config.model.name,
            "data": config.data.source,
            "macs": config.planner.macs,
            "ladder": list(config.personal.ladder),
            "configuration": config.digest[:16],
        }


def measure(
    fleet: Fleet, key: Mapping[str, Any], directory: Path, on_phase: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """One simulation in `directory`; figures of its row."""
    from benchmarks.stopwatch import Stopwatch
    from fedcaptor.simulations.local_grid import VirtualClock
    from fedcaptor.simulations.runner import World, local_grid, serve, simulate, weights_of

    config, watch = fleet.config(key["arm"], key["images"], key["seed"]), Stopwatch()

    def engine(world: World) -> Any:
        clock = VirtualClock()
        return serve(world, local_grid(world, clock, watch.around), on_phase, clock)

    summary = simulate(config, directory, on_phase, engine)
    phones = json.loads((directory / "details.json").read_text())["phones"]
    seconds = {
        "personal_seconds": watch.each("query.deliver", fleet.phones),
        "sums_seconds": watch.each("query.masked", fleet.phones),
    }
    shared = not config.personal.enabled
    figures = _of_the_shared_model if shared else _of_phones
    return figures(summary, phones, weights_of(config).stat().st_size) | _reference_lines(summary) | seconds


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
    """What each phone ended with; `kept_full`: share of phones that found no submodel good enough."""
    return {
        "accuracy": summary["accuracy"]["personalised"]["mean"],
        "accuracy_p5": summary["accuracy"]["personalised"]["p5"],
        "effective_macs": summary["effective_macs_ratio"],
        "macs": summary["macs_ratio"],
        "kept_full": sum(ratio == 1 for ratio in phones["macs_ratio"]) / len(phones["macs_ratio"]),
        "download_bytes": int(phones["download_bytes"][0]),
    }


def _of_the_shared_model(summary: Mapping[str, Any], phones: Mapping[str, Any], weights_bytes: int) -> dict[str, Any]:
    """The one submodel of all classes, as it left the server; it is downloaded whole and nothing falls back."""
    shared = summary["cluster_only"]
    return {
        "accuracy": shared["accuracy_limited"]["mean"],
        "accuracy_p5": shared["accuracy_limited"]["p5"],
        "unlimited": shared["accuracy"]["mean"],
        "unlimited_p5": shared["accuracy"]["p5"],
        "effective_macs": shared["effective_macs_ratio"],
        "macs": shared["macs_ratio"],
        "kept_full": 0.0,
        "download_bytes": round(shared["parameters_ratio"] * weights_bytes),
    }


def command(
    file: File,
    seeds: Annotated[str, typer.Option(help="Seeds: 0..2 or 0,5,7. Phones, images and noise follow from them.")] = "0",
    images: Annotated[str, typer.Option(help="Images a phone learns its owner from, one or more numbers.")] = "100",
    phones: Annotated[int, typer.Option(min=20, help="Simulated phones.")] = 100,
    min_cohort: Annotated[int, typer.Option(min=20, help="privacy.min_cohort.")] = 20,
    epsilon: Annotated[float, typer.Option(help="privacy.epsilon of each run.")] = 8.0,
    fresh: Fresh = False,
    keep: Annotated[Path | None, typer.Option(help="Keep each run's folder in this one.")] = None,
) -> None:
    """What federation brings over a phone alone, and over one submodel for all.

    Arms, each with one part more: alone (own images only), + the server's reference images, + private usage clusters,
    + private filter scores; and one submodel of all classes for everybody. A row takes one or two minutes with
    100 phones. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks federation --seeds 0..2 --images 100,30,12 --json benchmarks/results/federation.json
    """
    fleet = Fleet(phones, min_cohort, epsilon)
    options: dict[str, str | int | float | None] = {
        "seeds": seeds,
        "images": images,
        "phones": phones,
        "min_cohort": min_cohort,
        "epsilon": epsilon,
    }
    record = open_record(file, "federation", fleet.settings(), command_line("federation", file, **options), fresh)
    keys = [{"arm": a, "images": n, "seed": s} for s in numbers(seeds) for n in numbers(images) for a in ARMS]
    with bars("federation") as (on_row, on_phase):
        sweep(record, file, keys, lambda key: _in_a_folder(fleet, key, keep, on_phase), on_row)


def _in_a_folder(
    fleet: Fleet, key: Mapping[str, Any], keep: Path | None, on_phase: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Measure in a folder that goes away with its row, or in a new one under `keep`: half a run has no timing."""
    if keep is None:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            return measure(fleet, key, Path(folder), on_phase)
    from fedcaptor.simulations.runner import remove_run

    kept = keep / "-".join(str(value) for value in key.values())
    remove_run(kept)
    return measure(fleet, key, kept, on_phase)
