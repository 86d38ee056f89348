"""Which gradient score predicts what removing a filter does: rank correlation with the measured rise in loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from scipy.stats import spearmanr

from benchmarks.closing import Closing
from benchmarks.inputs import Inputs
from benchmarks.options import File, Fresh, Model, Test, Threads, Weights
from benchmarks.progress import OnPhase, bars
from benchmarks.record import command_line, open_record, sweep
from benchmarks.subsets import Labelled
from benchmarks.trial import Latest
from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import Group
from fedcaptor.common.ranking import Scores, for_classes, rankable_groups, weight_norms
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.gradients import SCORES

Draw = tuple[tuple[int, ...], int, int]
"""Needed classes, the benchmark's seed, number of the draw."""

CONTROL = "l1"
"""Of the weights alone: knows no class and no image."""


@dataclass(eq=False)
class Trial:
    """Measures rows; keys that come sorted share scores and closed filters. `filters`: closed in each layer.
    `images`: unlabelled ones a class that scores see. `held`: test images a class that filters are closed on.
    """

    inputs: Inputs
    filters: int
    images: int
    held: int
    on_phase: OnPhase = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._of_draw, self._of_layer, self._closing = Latest(self._scores), Latest(self._close), Latest(self._hold)

    def keys(self, sets: Sequence[Sequence[tuple[int, ...]]], seed: int) -> list[dict[str, Any]]:
        """Of all rows, draw by draw and layer by layer."""
        groups = self.inputs.base.groups
        return [
            {"model": groups.model, "classes": list(classes), "score": s, "layer": group.name, "seed": seed, "draw": d}
            for d, of_draw in enumerate(sets)
            for classes in of_draw
            for group in rankable_groups(groups)
            for s in (*SCORES, CONTROL)
        ]

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of one row."""
        draw = (tuple(key["classes"]), key["seed"], key["draw"])
        chosen, changes = self._of_layer(draw, self.inputs.base.groups.by_name[key["layer"]])
        score = self._of_draw(draw)[key["score"]][key["layer"]][chosen]
        return {
            "correlation": rank_correlation(score, changes.mean(1)),
            "correlation_size": rank_correlation(score, np.abs(changes).mean(1)),
            "filters": len(chosen),
        }

    def _scores(self, draw: Draw) -> dict[str, Scores]:
        """Of the needed classes, each with the same say; labels are the model's answers among them, as on a phone."""
        classes, *seed = draw
        base, needed = self.inputs.base, np.array(classes)
        x = normalise(self.inputs.pool.sample(classes, self.images, 10, seed).images, base.mean, base.std)
        labels, found = needed[logits(base.module, x)[:, needed].argmax(1)], dict[str, Scores]()
        for done, (name, score) in enumerate(SCORES.items()):
            self.on_phase(name, done, len(SCORES))
            of_classes = score(base.module, base.groups, x, labels)
            found[name] = for_classes(of_classes.scores, of_classes.presence, needed)
        return found | {CONTROL: weight_norms(base.groups, base.state)}

    def _hold(self, draw: Draw) -> Closing:
        base, part = self.inputs.base, _held(self.inputs.pool.test, draw, self.held)
        return Closing.on(base.module, normalise(part.x, base.mean, base.std), part.y)

    def _close(self, draw: Draw, group: Group) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Sampled filters of one layer, and what closing each does to the loss of each image [filters, images]."""
        self.on_phase(group.name, 0, 1)
        rng = np.random.default_rng([*draw[1:], *group.name.encode()])
        chosen = np.sort(rng.choice(group.channels, min(self.filters, group.channels), replace=False))
        changes = self._closing(draw).changes(group, chosen.tolist())
        self.on_phase(group.name, 1, 1)
        return chosen, changes


def rank_correlation(score: npt.NDArray[Any], effect: npt.NDArray[Any]) -> float:
    """Spearman's, in [-1, 1]; 0 where one side is constant and so tells nothing."""
    if np.ptp(score) == 0 or np.ptp(effect) == 0:
        return 0.0
    return float(spearmanr(score, effect).statistic)


def _held(test: Labelled, draw: Draw, images: int) -> Labelled:
    """Test images of the needed classes, at most so many of each."""
    classes, *seed = draw
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(test.y == c))[:images] for c in classes])
    return Labelled(test.x[chosen], test.y[chosen])


def command(
    file: File,
    model: Model,
    weights: Weights,
    data: Annotated[str, typer.Option(help="Source of images for scores; split `train` where it has some.")],
    test: Test = None,
    classes: Annotated[str, typer.Option(help="Needed classes, one or more numbers of them.")] = "5",
    draws: Annotated[int, typer.Option(min=1, help="Random class sets of each size.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Class sets, images and filters follow from it.")] = 0,
    filters: Annotated[int, typer.Option(min=3, help="Filters of each layer that are closed one by one.")] = 16,
    images: Annotated[int, typer.Option(min=1, help="Unlabelled images a class that scores are made of.")] = 20,
    held: Annotated[int, typer.Option(min=1, help="Test images a class on which filters are closed.")] = 20,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """Which class-wise gradient score says best what closing a filter does to the loss, layer by layer.

    Example: python -m benchmarks gradients --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 5 --draws 10 --json benchmarks/results/gradients-vgg16.json
    """
    inputs = Inputs.load(model, weights, data, test, threads)
    sets = inputs.sets(classes, draws, seed)
    options: dict[str, str | int | float | None] = {
        **inputs.options,
        "classes": classes,
        "draws": draws,
        "seed": seed,
        "filters": filters,
        "images": images,
        "held": held,
        "threads": threads,
    }
    settings = {**inputs.settings, "filters": filters, "images": images, "held": held}
    record = open_record(file, "gradients", settings, command_line("gradients", file, **options), fresh)
    with bars("gradients") as (on_row, on_phase):
        trial = Trial(inputs, filters, images, held, on_phase)
        sweep(record, file, trial.keys(sets, seed), trial.measure, on_row)
