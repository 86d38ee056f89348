"""What trusting nobody costs: preference clusters from local answers beside those from masked sums at the same ε."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from fedcaptor.common.arrays import Floats
from fedcaptor.common.config import Config, parse
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.common.statistics import USAGE
from fedcaptor.common.statistics import nearest as nearest_to
from fedcaptor.common.statistics.usage import cooccurrence, cooccurrence_matrix
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.server import clusters, local
from fedcaptor.server.budget import SumBudget, steps
from fedcaptor.simulations.habits import draw_habits

MODEL, SHAPE = "small-cnn", (1, 28, 28)  # for the length of the other sums, which share the ε of masked ones


@dataclass(frozen=True, kw_only=True)
class LocalPrivacy(Benchmark):
    """Preference clusters from local answers and from masked sums, against the owners' true usage.

    Example: python -m benchmarks local_privacy --json benchmarks/results/local_privacy.json
    """

    phones: Annotated[str, Option(help="Numbers of phones.")] = "100,1000,10000"
    epsilons: Annotated[str, Option(help="ε, whole numbers.")] = "2,4,8"
    seeds: Annotated[str, Option(help="Owners and noise follow from each.")] = "0..4"
    classes: Annotated[int, Option(min=4, help="Classes of the model."), SHARED] = 10
    groups: Annotated[int, Option(min=1, max=32, help="Groups of owners with favourite classes."), SHARED] = 4
    min_cohort: Annotated[int, Option(min=20, help="As in [privacy], for masked sums alone."), SHARED] = 20

    def __post_init__(self) -> None:
        if 0 in numbers(self.epsilons):
            raise ConfigError(f"epsilons is {self.epsilons!r}, must be above 0")

    def row_keys(self) -> list[Row]:
        rows = product(numbers(self.phones), numbers(self.epsilons), numbers(self.seeds))
        return [{"phones": phones, "epsilon": epsilon, "seed": seed} for phones, epsilon, seed in rows]

    def config(self, key: Mapping[str, Any]) -> Config:
        """Return the configuration of the masked run."""
        return parse(
            {
                "population": {"phones": key["phones"], "groups": self.groups},
                "privacy": {"epsilon": key["epsilon"], "min_cohort": self.min_cohort},
                "run": {"seed": key["seed"]},
            }
        )

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return the figures of one row, for each arm; every phone answers."""
        config = self.config(key)
        usage = draw_habits(config.population, self.classes, 1, key["seed"])[0]
        groups = trace(build(MODEL, self.classes, SHAPE), MODEL, SHAPE)
        found = {
            "unprotected": by_sums(usage, config, None),
            "masked": by_sums(usage, config, groups),
            "local": by_answers(usage, config),
        }
        return {f"{arm}_{name}": value for arm, c in found.items() for name, value in figures(usage, c).items()}


def by_sums(usage: Floats, config: Config, groups: ChannelGroups | None) -> Floats:
    """Make centroids as the server does from sums, the noise of each drawn at once; without noise if no `groups`."""
    phones, classes = usage.shape
    budget = SumBudget(config, groups, phones) if groups else None
    rng, centroids = stream(config.run.seed, Stream.SUMMED_NOISE), None
    for step in (step for step in steps(config) if step.kind == USAGE.kind):
        blocks = 1 if centroids is None else len(centroids)
        deviation = budget.spec(step, blocks).deviation if budget else 0.0
        if centroids is None:
            total = np.sum([cooccurrence(u) for u in usage], axis=0)
            pairs = cooccurrence_matrix(total + rng.normal(0, deviation, total.shape), classes)
            centroids = clusters.first_centroids(pairs, config.clusters.most, config.run.seed)
            continue
        blocks_of = np.zeros(centroids.shape)
        np.add.at(blocks_of, nearest(usage, centroids), usage)
        noisy = blocks_of + rng.normal(0, deviation, blocks_of.shape)
        centroids, counts = clusters.next_centroids(noisy, centroids, deviation)
        floor = config.privacy.min_cohort + 2 * deviation * np.sqrt(classes) if budget else 0.0
        centroids, _ = clusters.publishable(centroids, counts, floor, config.clusters.alike, True)
    assert centroids is not None
    return centroids


def by_answers(usage: Floats, config: Config) -> Floats:
    """Make centroids from answers that phones draw."""
    phones, classes = usage.shape
    budget = local.LocalBudget.of(config.privacy, classes, phones, 0)
    answers, rng = local.Answers(budget.spec, phones), stream(config.run.seed, Stream.LOCAL_ANSWERS)
    for of_phone in usage:
        answers.add(budget.spec.draw(of_phone, rng))
    return local.published(answers, config.clusters, config.run.seed)[0]


def figures(usage: Floats, centroids: Floats) -> dict[str, Any]:
    """Return `distance`: total variation between a phone's usage and its nearest centroid, mean over phones; `error`:
    of a centroid's share against the mean usage of the phones that are nearest to it, root mean square.
    """
    own = nearest(usage, centroids)
    errors = [np.square(usage[own == k].mean(0) - centroids[k]).mean() * (own == k).mean() for k in np.unique(own)]
    return {
        "distance": float(np.abs(usage - centroids[own]).sum(1).mean() / 2),
        "error": float(np.sqrt(np.sum(errors))),
        "clusters": len(centroids),
    }


def nearest(usage: Floats, centroids: Floats) -> npt.NDArray[np.int64]:
    """Return the centroids [N] that phones assign themselves to."""
    return np.array([nearest_to(u, centroids) for u in usage])
