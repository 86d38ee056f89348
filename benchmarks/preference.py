"""What costs no privacy: how near the released filter preference is to the one without noise, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from scipy.stats import rankdata

from benchmarks.options import File, Fresh
from benchmarks.private_vs_open import Design
from benchmarks.progress import OnPhase, bars
from benchmarks.record import command_line, numbers, open_record, sweep
from benchmarks.trial import Latest
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import join, layer_slices, share_out
from fedcaptor.common.statistics import SCORES

RANK = 2  # of a layer's matrix, classes by filters
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


@dataclass(eq=False)
class Trial:
    """Measures rows; those of a seed share its phones. Pictures are of the network alone, so all rows share them."""

    design: Design
    folder: Path
    on_phase: OnPhase = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._fleet, self._pictures = Latest(self._draw), Latest(self._paint)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Rank correlation by variant, in the order of `VARIANTS`."""
        config = self.design.config(float(key["epsilon"]), key["seed"])
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

    def _draw(self, seed: int) -> Any:
        from benchmarks.fleet_server import jury_of

        jury = jury_of(self.design.config(None, seed), self.folder, self.design.judged, self.on_phase)
        return jury.world, jury.fleet

    def _paint(self, base: Any) -> npt.NDArray[np.float32]:
        from fedcaptor.server.painting import Visualisation
        from fedcaptor.server.visualise import visualise

        steps = self.design.config(None, 0).visualise.steps
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
    """The decoded sum of filter scores pooled by `assignment` [F]; its noise is that of a run under `config`."""
    from benchmarks.fleet import fleet_sum
    from fedcaptor.server.budget import Step, SumBudget

    budget = SumBudget(config, fleet.groups, len(phones))
    spec = budget.spec(Step(1, SCORES, 0), int(assignment.max()) + 1)
    if not rotated:  # then rounding is biased and wants finer quanta
        spec = replace(spec, rotated=False, scale=spec.scale * 16, bits=32)
    tensors = {"pool": assignment.astype(np.int32)}
    if not noise:
        return np.asarray(fleet.vectors("scores", phones, tensors).sum(0))
    return np.asarray(fleet_sum(fleet, "scores", spec, tensors, phones, rng))


def by_layer(matrix: Floats, groups: ChannelGroups, change: Callable[[Floats], Floats]) -> Floats:
    """Each layer's block [filters, classes] changed."""
    return np.concatenate([change(matrix[rows]) for rows in layer_slices(groups)])


def low_rank(block: Floats) -> Floats:
    """The nearest matrix of rank `RANK`."""
    u, s, v = np.linalg.svd(block, full_matrices=False)
    return np.asarray((u[:, :RANK] * s[:RANK]) @ v[:RANK])


def correlation(found: npt.NDArray[Any], exact: Floats, groups: ChannelGroups) -> float:
    """Spearman's, of a layer's filters for a class; the mean over layers and classes that some phone has."""
    values = []
    for rows in layer_slices(groups):
        seen = exact[rows].std(0) > 0
        a, b = (rankdata(matrix[rows][:, seen], axis=0) for matrix in (found, exact))
        a, b = a - a.mean(0), b - b.mean(0)
        length = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
        values.append(np.divide((a * b).sum(0), length, out=np.zeros(len(length)), where=length > 0))
    return float(np.concatenate(values).mean())


def command(
    file: File,
    phones: Annotated[str, typer.Option(help="Populations; the smaller are the first phones of the largest.")] = (
        "100,1000"
    ),
    epsilons: Annotated[str, typer.Option(help="ε of a run, whole numbers.")] = "2,8",
    seeds: Annotated[str, typer.Option(help="Phones, images and noise follow from each.")] = "0..2",
    min_cohort: Annotated[int, typer.Option(min=20, help="privacy.min_cohort.")] = 20,
    fresh: Fresh = False,
) -> None:
    """How near the released filter preference is to the one without noise, with and without each part of its making.

    Example: python -m benchmarks preference --json benchmarks/results/preference.json
    """
    sizes, values, draws = numbers(phones), numbers(epsilons), numbers(seeds)
    if min(values) < 1:
        raise ConfigError(f"epsilons is {epsilons!r}, must be at least 1")
    design = Design(max(sizes), min_cohort, 1, 0)
    keys = [{"phones": n, "epsilon": e, "seed": seed} for seed in draws for n in sizes for e in values]
    options: dict[str, str | int | float | None] = {"phones": phones, "epsilons": epsilons, "seeds": seeds}
    line = command_line("preference", file, **options, min_cohort=min_cohort)
    settings = {**design.settings(), "variants": list(VARIANTS)}
    record = open_record(file, "preference", settings, line, fresh)
    with bars("preference") as (on_row, on_phase), TemporaryDirectory(prefix="benchmark-") as folder:
        sweep(record, file, keys, Trial(design, Path(folder), on_phase).measure, on_row)
