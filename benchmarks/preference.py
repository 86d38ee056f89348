"""What costs no privacy: how near the released filter preference is to the one without noise, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from typer import Option

from benchmarks.command import Benchmark, Measure
from benchmarks.evaluation import Evaluation
from benchmarks.fleet_sums import fleet_sum
from benchmarks.last_call import remembers_last_call
from benchmarks.options import MinCohort, Populations
from benchmarks.private_vs_open import Population
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import join, layer_slices, share_out
from fedcaptor.common.statistics import SCORES
from fedcaptor.server.budget import Step, SumBudget
from fedcaptor.server.painting import Visualisation
from fedcaptor.server.visualise import visualise

RANK = 2  # that a layer's matrix, classes by filters, is reduced to
VARIANTS = (
    "each filter, negative scores kept",
    "each filter, low rank",
    "each filter",
    "clusters, not rotated",
    "clusters",
    "clusters, shared out by pictures",
    "clusters, joined with pictures",
    "each filter, joined with pictures",
    "pictures alone",
)


@dataclass(frozen=True, kw_only=True)
class Preference(Benchmark):
    """How near the released filter preference is to the one without noise, with and without each part of its making.

    Example: python -m benchmarks preference --json benchmarks/results/preference.json
    """

    phones: Populations = "100,1000"
    epsilons: Annotated[str, Option(help="ε of a run, whole numbers.")] = "2,8"
    seeds: Annotated[str, Option(help="Phones, images and noise follow from each.")] = "0..2"
    min_cohort: MinCohort = 20

    def __post_init__(self) -> None:
        if min(numbers(self.epsilons)) < 1:
            raise ConfigError(f"epsilons is {self.epsilons!r}, must be at least 1")

    @property
    def population(self) -> Population:
        return Population(max(numbers(self.phones)), self.min_cohort)

    def shared(self) -> dict[str, Any]:
        return {**self.population.settings(), "judged": 1, "personal": 0, "variants": list(VARIANTS)}

    def row_keys(self) -> list[Row]:
        rows = product(numbers(self.seeds), numbers(self.phones), numbers(self.epsilons))
        return [{"phones": phones, "epsilon": epsilon, "seed": seed} for seed, phones, epsilon in rows]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            yield PreferenceMeasurement(self.population, Path(folder), on_phase).measure


@dataclass(eq=False)
class PreferenceMeasurement:
    """Measures rows; those of a seed share its phones. Pictures are of the network alone, so all rows share them."""

    population: Population
    folder: Path
    on_phase: OnPhase

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return rank correlations by variant, in the order of `VARIANTS`."""
        config = self.population.config(float(key["epsilon"]), key["seed"])
        world, fleet = self._fleet(key["seed"])
        groups, numbers_of = world.base.groups, np.arange(key["phones"])
        visual = self._pictures(world.base)
        each = np.arange(len(visual))
        pool = filter_clusters(visual, groups, config.scores.clusters_per_layer, config.run.seed)
        rng = np.random.default_rng([key["seed"], key["phones"], key["epsilon"]])

        ask = partial(released, fleet, numbers_of, config)

        def mean(total: Floats) -> tuple[Floats, Floats]:
            return SCORES.decode(total, groups)

        exact, _ = mean(ask(each, rng, noise=False))
        total = ask(each, rng)
        raw = total[: -groups.classes].reshape(exact.shape)
        measured, presence = mean(ask(pool, rng))
        shared, halves = share_out(measured, pool, visual), (1 - config.scores.measured, config.scores.shrink)
        found = {
            "each filter, negative scores kept": raw,
            "each filter, low rank": by_layer(raw, groups, low_rank),
            "each filter": np.maximum(raw, 0),
            "clusters, not rotated": mean(ask(pool, rng, rotated=False))[0][pool],
            "clusters": measured[pool],
            "clusters, shared out by pictures": shared,
            "clusters, joined with pictures": join(shared, presence, visual, *halves),
            "each filter, joined with pictures": join(*mean(total), visual, *halves),
            "pictures alone": visual,
        }
        return {"correlations": [correlation(found[name], exact, groups) for name in VARIANTS]}

    @remembers_last_call
    def _fleet(self, seed: int) -> Any:
        evaluation = Evaluation.of(self.population.config(None, seed), self.folder, 1, self.on_phase)
        return evaluation.world, evaluation.fleet

    @remembers_last_call
    def _pictures(self, base: Any) -> npt.NDArray[np.float32]:
        steps = self.population.config(None, 0).visualise.steps
        found = visualise(
            base, Visualisation(steps=steps), self.folder, lambda done, total: self.on_phase("pictures", done, total)
        )
        return np.concatenate([found[group.name].profile for group in base.groups.prunable])


def released(
    fleet: Any,
    phones: Indices,
    config: Config,
    assignment: Indices,
    rng: np.random.Generator,
    noise: bool = True,
    rotated: bool = True,
) -> Floats:
    """Return the decoded sum of filter scores pooled by `assignment` [F]; its noise is that of a run under `config`."""
    budget = SumBudget(config, fleet.groups, len(phones))
    spec = budget.spec(Step(1, SCORES, 0), int(assignment.max()) + 1)
    if not rotated:  # then rounding is biased and wants finer quanta
        spec = replace(spec, rotated=False, scale=spec.scale * 16, bits=32)
    tensors = {"pool": assignment.astype(np.int32)}
    if not noise:
        return np.asarray(fleet.vectors("scores", phones, tensors).sum(0))
    return np.asarray(fleet_sum(fleet, "scores", spec, tensors, phones, rng))


def by_layer(matrix: Floats, groups: ChannelGroups, change: Callable[[Floats], Floats]) -> Floats:
    """Change each layer's block [filters, classes]."""
    return np.concatenate([change(matrix[rows]) for rows in layer_slices(groups)])


def low_rank(block: Floats) -> Floats:
    """Return the nearest matrix of rank `RANK`."""
    u, s, v = np.linalg.svd(block, full_matrices=False)
    return np.asarray((u[:, :RANK] * s[:RANK]) @ v[:RANK])


def correlation(found: npt.NDArray[Any], exact: Floats, groups: ChannelGroups) -> float:
    """Return Spearman's, of a layer's filters for a class; the mean over layers and classes that some phone has."""
    values = []
    for rows in layer_slices(groups):
        seen = exact[rows].std(0) > 0
        a, b = (rankdata(matrix[rows][:, seen], axis=0) for matrix in (found, exact))
        a, b = a - a.mean(0), b - b.mean(0)
        length = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
        values.append(np.divide((a * b).sum(0), length, out=np.zeros(len(length)), where=length > 0))
    return float(np.concatenate(values).mean())
