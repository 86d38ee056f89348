"""What privacy costs: the delivered submodels against ε and population, on sums that hold what masked ones would."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import OnPhase, bars
from benchmarks.record import command_line, floats, numbers, of_configuration, open_record, sweep
from benchmarks.trial import Latest
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError


@dataclass(frozen=True)
class Design:
    """What all rows have in common: `drawn` phones a seed, of which smaller populations are the first; the first
    `judged` of them are judged in all rows, whether their answers were in the sums or not, the first `personal` with
    the personal step.
    """

    drawn: int
    min_cohort: int
    judged: int
    personal: int
    overrides: tuple[str, ...] = ()

    def config(self, epsilon: float | None, seed: int) -> Config:
        """The shipped configuration; None: no noise. Budgets are those of masked sums."""
        noise = "privacy.noise=false" if epsilon is None else f"privacy.epsilon={epsilon}"
        shared = [f"population.phones={self.drawn}", f"privacy.min_cohort={self.min_cohort}", f"run.seed={seed}"]
        return load_config(None, [*shared, noise, *self.overrides])

    def settings(self) -> dict[str, Any]:
        """For the record."""
        config = self.config(None, 0)
        return {
            "drawn": self.drawn,
            "min_cohort": self.min_cohort,
            "judged": self.judged,
            "personal": self.personal,
            "corrupted": config.privacy.noiseless,
            **of_configuration(config),
        }


@dataclass(eq=False)
class Trial:
    """Measures rows; keys that come sorted share the fleet of their seed, the pictures of its filters and the server
    without noise.
    """

    design: Design
    folder: Path
    on_phase: OnPhase = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._of_seed, self._exact = Latest(self._draw), Latest(self._without_noise)

    def keys(
        self, seeds: Sequence[int], phones: Sequence[int], epsilons: Sequence[float | None]
    ) -> list[dict[str, Any]]:
        """Of all rows, those without noise first."""
        ordered = sorted(epsilons, key=lambda e: -math.inf if e is None else -e)
        return [{"phones": n, "epsilon": e, "seed": s} for s in seeds for n in sorted(phones) for e in ordered]

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of one row."""
        from benchmarks.fleet_server import centroid_error

        start = time.process_time()
        phones, epsilon, seed = key["phones"], key["epsilon"], key["seed"]
        jury, exact = self._of_seed(seed), self._exact(seed, phones)
        served = exact if epsilon is None else self._serve(epsilon, seed, phones, exact.pictures)
        centroids = served.published.centroids
        figures = {
            "clusters": len(centroids),
            **jury.of_full,
            **jury.of_clusters(served),
            "accuracy_personal": None,
            "macs_personal": None,
            "macs_effective": None,
            "judged": self.design.judged,
            "centroid_error": centroid_error(jury.fleet, phones, centroids, exact.published.centroids),
            "spent_epsilon": served.epsilon,
        }
        if self.design.personal:
            figures |= jury.of_phones(served, range(self.design.personal), self.on_phase)
        return figures | {"seconds": time.process_time() - start}

    def _draw(self, seed: int) -> Any:
        """The jury of one seed, with its population and fleet."""
        from benchmarks.fleet_server import jury_of

        return jury_of(self.design.config(None, seed), self.folder, self.design.judged, self.on_phase)

    def _without_noise(self, seed: int, phones: int) -> Any:
        return self._serve(None, seed, phones, None)

    def _serve(self, epsilon: float | None, seed: int, phones: int, pictures: Any) -> Any:
        from benchmarks.fleet_server import serve_fleet

        jury = self._of_seed(seed)
        world = replace(jury.world, config=self.design.config(epsilon, seed))
        return serve_fleet(world, jury.fleet, phones, pictures, on_phase=self.on_phase)


def budgets(text: str) -> list[float | None]:
    """`inf,8,2` as values of ε; None for no noise."""
    found = floats(text)
    if not found or not all(value > 0 for value in found):
        raise ConfigError(f"epsilons is {text!r}, must be different values above 0 such as inf,8,2")
    return [None if math.isinf(value) else value for value in found]


def command(
    file: File,
    epsilons: Annotated[str, typer.Option(help="Values of ε of a run; inf: no noise.")] = "inf,8,4,2,1",
    phones: Annotated[str, typer.Option(help="Populations; the smaller are the first phones of the largest.")] = "100",
    seeds: Annotated[str, typer.Option(help="Seeds: 0..2 or 0,5,7. Phones, images and noise follow from them.")] = "0",
    min_cohort: Annotated[int, typer.Option(min=20, help="privacy.min_cohort.")] = 20,
    judged: Annotated[int, typer.Option(min=1, help="Phones whose cluster's submodel is judged, alike in all.")] = 100,
    personal: Annotated[int, typer.Option(min=0, help="Phones that personalise too, a CPU second each.")] = 6,
    fresh: Fresh = False,
) -> None:
    """What the noise of differential privacy costs, by ε and population: accuracy and MACs of what phones get.

    Sums hold the very vectors and noise that masked ones would; the phones' answers are worked out once and their noise
    is drawn together, so that ten thousand phones take seconds. A row takes 20 to 50 CPU seconds, most of them in
    planning a submodel for each cluster; a seed's first row a minute more. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks private_vs_open --epsilons inf,8,4,2,1 --phones 100,1000,10000 --seeds 0,1,2
    --json benchmarks/results/private_vs_open.json
    """
    values, sizes, draws = budgets(epsilons), numbers(phones), numbers(seeds)
    if max(personal, judged) > max(sizes):
        raise ConfigError(
            f"personal {personal} and judged {judged} must be at most the largest population {max(sizes)}: lower them"
        )
    design = Design(max(sizes), min_cohort, judged, personal)
    options: dict[str, str | int | float | None] = {
        "epsilons": epsilons,
        "phones": phones,
        "seeds": seeds,
        "min_cohort": min_cohort,
        "judged": judged,
        "personal": personal,
    }
    line = command_line("private_vs_open", file, **options)
    record = open_record(file, "private_vs_open", design.settings(), line, fresh)
    with bars("private_vs_open") as (on_row, on_phase), TemporaryDirectory(prefix="benchmark-") as folder:
        trial = Trial(design, Path(folder), on_phase)
        sweep(record, file, trial.keys(draws, sizes, values), trial.measure, on_row)
