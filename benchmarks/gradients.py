"""Which gradient score predicts what removing a filter does: rank correlation with the measured rise in loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from typer import Option

from benchmarks.closing import Closing
from benchmarks.command import SHARED, Measure
from benchmarks.inputs import NetworkBenchmark
from benchmarks.last_call import remembers_last_call
from benchmarks.options import Classes, Draws, Model, Test, Threads, Weights
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from benchmarks.subsets import Labelled
from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import Group
from fedcaptor.common.ranking import Scores, for_classes, rankable_groups, weight_norms
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.gradients import SCORES

Draw = tuple[tuple[int, ...], int, int]
"""Target classes, the benchmark's seed, number of the draw."""

CONTROL = "l1"
"""This score looks at the weights alone: it knows no class and no image."""


@dataclass(frozen=True, kw_only=True)
class Gradients(NetworkBenchmark):
    """Which class-wise gradient score says best what closing a filter does to the loss, layer by layer.

    Example: python -m benchmarks gradients --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 5 --draws 10 --json benchmarks/results/gradients-vgg16.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of images for scores; split `train` where it has some.")]
    test: Test = None
    classes: Classes = "5"
    draws: Draws = 10
    seed: Annotated[int, Option(min=0, help="Class sets, images and filters follow from it.")] = 0
    filters: Annotated[int, Option(min=3, help="Filters of each layer that are closed one by one."), SHARED] = 16
    images: Annotated[int, Option(min=1, help="Unlabelled images a class that scores are made of."), SHARED] = 20
    held: Annotated[int, Option(min=1, help="Test images a class on which filters are closed."), SHARED] = 20
    threads: Threads = None

    def row_keys(self) -> list[Row]:
        groups = self.inputs.base.groups
        return [
            {"model": groups.model, "classes": c, "score": s, "layer": group.name, "seed": self.seed, "draw": draw}
            for draw, c in self.numbered_sets()
            for group in rankable_groups(groups)
            for s in (*SCORES, CONTROL)
        ]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        yield GradientMeasurement(self, on_phase).measure


@dataclass(eq=False)
class GradientMeasurement:
    """Measures rows; keys that come sorted share scores and closed filters."""

    settings: Gradients
    on_phase: OnPhase

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        draw = (tuple(key["classes"]), key["seed"], key["draw"])
        chosen, changes = self._close(draw, self.settings.inputs.base.groups.by_name[key["layer"]])
        score = self._scores(draw)[key["score"]][key["layer"]][chosen]
        return {
            "correlation": rank_correlation(score, changes.mean(1)),
            "correlation_size": rank_correlation(score, np.abs(changes).mean(1)),
            "filters": len(chosen),
        }

    @remembers_last_call
    def _scores(self, draw: Draw) -> dict[str, Scores]:
        """Score filters for the target classes, each with the same say; labels are the model's answers among them, as
        on a phone.
        """
        classes, *seed = draw
        inputs, target = self.settings.inputs, np.array(classes)
        base = inputs.base
        x = normalise(inputs.splits.sample(classes, self.settings.images, 10, seed).images, base.mean, base.std)
        labels, found = target[logits(base.module, x)[:, target].argmax(1)], dict[str, Scores]()
        for done, (name, score) in enumerate(SCORES.items()):
            self.on_phase(name, done, len(SCORES))
            of_classes = score(base.module, base.groups, x, labels)
            found[name] = for_classes(of_classes.scores, of_classes.presence, target)
        return found | {CONTROL: weight_norms(base.groups, base.state)}

    @remembers_last_call
    def _closing(self, draw: Draw) -> Closing:
        base, part = self.settings.inputs.base, _held(self.settings.inputs.splits.test, draw, self.settings.held)
        return Closing.on(base.module, normalise(part.x, base.mean, base.std), part.y)

    @remembers_last_call
    def _close(self, draw: Draw, group: Group) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Return sampled filters of one layer, and what closing each does to each image's loss [filters, images]."""
        self.on_phase(group.name, 0, 1)
        rng = np.random.default_rng([*draw[1:], *group.name.encode()])
        chosen = np.sort(rng.choice(group.channels, min(self.settings.filters, group.channels), replace=False))
        changes = self._closing(draw).changes(group, chosen.tolist())
        self.on_phase(group.name, 1, 1)
        return chosen, changes


def rank_correlation(score: npt.NDArray[Any], effect: npt.NDArray[Any]) -> float:
    """Return Spearman's, in [-1, 1]; 0 where one side is constant and so tells nothing."""
    if np.ptp(score) == 0 or np.ptp(effect) == 0:
        return 0.0
    return float(spearmanr(score, effect).statistic)


def _held(test: Labelled, draw: Draw, images: int) -> Labelled:
    """Return test images of the target classes, at most so many of each."""
    classes, *seed = draw
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(test.y == c))[:images] for c in classes])
    return Labelled(test.x[chosen], test.y[chosen])
