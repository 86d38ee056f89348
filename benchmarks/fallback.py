"""How a submodel knows what it does not serve: out-of-set scores side by side, and how far its probabilities hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer

from benchmarks.inputs import Inputs
from benchmarks.options import File, Fresh, Model, Test, Threads, Weights
from benchmarks.progress import OnPhase, bars
from benchmarks.record import command_line, open_record, ratios, sweep
from benchmarks.trial import Latest, in_batches
from fedcaptor.client.fallback import out_of_set_score
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.planner import Budget, plan
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.outputs import features, last_layer, refitted
from fedcaptor.common.torch_engine.prune import Evidence

KINDS = ("energy", "max-softmax", "max-logit")
AGAINST = ("max-logit-kept", "max-logit-refitted")
"""The last layer has outputs for the other classes, as merged or refitted, and the score is held against them."""
SCORES = (*KINDS, *AGAINST, "reject-logits", "reject-features", "full-model")

Floats = npt.NDArray[np.float32]
Draw = tuple[tuple[int, ...], int, int]
"""Needed classes, the benchmark's seed, number of the draw."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Images through a network: `features` [N, D] as its last layer reads them, `z` [N, C] logits of all classes."""

    features: npt.NDArray[np.float64]
    z: Floats

    @classmethod
    def by(cls, submodel: Submodel, images: Images) -> Seen:
        return cls(*features(submodel, images))


@dataclass(eq=False)
class Trial:
    """Measures rows; keys that come sorted share their submodel. `images`: of every class, unlabelled, once for merging
    and once more to calibrate and to learn what other classes look like.
    """

    inputs: Inputs
    images: int
    on_phase: OnPhase = lambda name, done, total: None

    def __post_init__(self) -> None:
        self._evidence, self._figures = Latest(self._gather), Latest(self._measure)

    def keys(self, sets: Sequence[Sequence[tuple[int, ...]]], macs: Sequence[float], seed: int) -> list[dict[str, Any]]:
        """Of all rows, draw by draw."""
        shared = {"model": self.inputs.base.groups.model}
        return [
            {**shared, "classes": list(classes), "macs_target": ratio, "score": score, "seed": seed, "draw": draw}
            for draw, of_draw in enumerate(sets)
            for classes in of_draw
            for ratio in macs
            for score in SCORES
        ]

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of one row; those of the submodel are the same for all scores."""
        submodel, scores = self._figures((tuple(key["classes"]), key["seed"], key["draw"]), key["macs_target"])
        return {**scores[key["score"]], **submodel}

    def _gather(self, draw: Draw) -> tuple[Evidence, Images, Images]:
        """Of the needed classes, the images, and as many of these classes that no submodel is merged on."""
        classes, *seed = draw
        sample = self.inputs.pool.sample(classes, self.images, 10 * self.images, seed)
        evidence = Evidence.gather(self.inputs.base, np.array(classes), sample.images, seed=sum(seed))
        return evidence, sample.images, sample.held

    def _measure(self, draw: Draw, macs: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """One network, whose last layer keeps the outputs of all classes, serves all scores: what it says of the needed
        ones is what the submodel without the others says.
        """
        from benchmarks.out_of_set import inside, told_apart

        self.on_phase(f"{len(draw[0])} classes, {macs:g}", 0, 1)
        base, needed, everything = self.inputs.base, np.array(draw[0]), np.arange(self.inputs.base.groups.classes)
        evidence, merged_on, held = self._evidence(draw)
        submodel = evidence.merged(plan(base.groups, evidence.curves, everything, Budget(macs=macs)))
        others = self.inputs.available[~np.isin(self.inputs.available, needed)]
        reference = self.inputs.pool.sample(others.tolist(), self.images, 10, draw[1:]).images
        own, other, test = (Seen.by(submodel, images) for images in (held, reference, self.inputs.pool.test.x))
        full = in_batches(base, held)[:, needed]
        named = np.concatenate([needed[full.argmax(1)], others[in_batches(base, reference)[:, others].argmax(1)]])
        again = refitted(submodel, np.concatenate([merged_on, reference]), others)
        scores = _scores(test, own, other, named, needed) | {
            "max-logit-refitted": _against(_outputs(again, test), needed),
            "full-model": inside(self._test, _mask(needed, self._test)),
        }
        own_images = np.isin(self.inputs.pool.test.y, needed)
        figures = {name: told_apart(score, own_images) for name, score in scores.items()}
        self.on_phase("", 1, 1)
        return self._calibration(own.z[:, needed], full, test, needed) | {"macs_ratio": submodel.macs_ratio}, figures

    def _calibration(self, own: Floats, full: Floats, test: Seen, needed: Indices) -> dict[str, float]:
        """Of the probabilities of needed classes, on their test images; the temperature is fitted on other images, to
        which the submodel answers `own` and the full model `full`, both [N, k].
        """
        from benchmarks.out_of_set import calibration_error, temperature

        truth = self.inputs.pool.test.y
        inside = np.isin(truth, needed)
        columns = np.searchsorted(needed, truth[inside])
        z, limited = test.z[inside][:, needed], self._test[inside][:, needed]
        divisor = temperature(own, full)
        return {
            "accuracy": float((z.argmax(1) == columns).mean()),
            "accuracy_full_limited": float((limited.argmax(1) == columns).mean()),
            "temperature": divisor,
            "ece": calibration_error(z, columns),
            "ece_scaled": calibration_error(z / divisor, columns),
            "ece_full_limited": calibration_error(limited, columns),
        }

    @cached_property
    def _test(self) -> Floats:
        """Logits [test images, C] of the full model; once a process."""
        self.on_phase("full model", 0, 1)
        return in_batches(self.inputs.base, self.inputs.pool.test.x)


def _scores(test: Seen, own: Seen, other: Seen, named: Indices, needed: Indices) -> dict[str, npt.NDArray[Any]]:
    """Of test images; `named`: the full model's answers to `own` and `other` images, to learn reject classes from."""
    from benchmarks.out_of_set import rejecting

    mask = _mask(needed, test.z)
    found = {kind: out_of_set_score(test.z[:, mask], kind) for kind in KINDS}
    of_logits, of_features = (np.concatenate([getattr(own, kind), getattr(other, kind)]) for kind in ("z", "features"))
    return found | {
        "max-logit-kept": _against(test.z, needed),
        "reject-logits": rejecting(of_logits[:, mask], named, needed, test.z[:, mask]),
        "reject-features": rejecting(of_features, named, needed, test.features),
    }


def _outputs(submodel: Submodel, seen: Seen) -> Floats:
    """Logits of another last layer on the same features."""
    last = last_layer(submodel)
    return np.asarray(last(torch.from_numpy(seen.features).to(last.weight.dtype)).detach())


def _against(z: Floats, needed: Indices) -> npt.NDArray[Any]:
    """The score held against the outputs for other classes."""
    mask = _mask(needed, z)
    return out_of_set_score(z[:, mask], "max-logit", z[:, ~mask])


def _mask(needed: Indices, z: Floats) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(z.shape[1]), needed)


def command(
    file: File,
    model: Model,
    weights: Weights,
    data: Annotated[str, typer.Option(help="Source of unlabelled images; split `train` where it has some.")],
    test: Test = None,
    classes: Annotated[str, typer.Option(help="Needed classes, one or more numbers of them.")] = "2,5",
    draws: Annotated[int, typer.Option(min=1, help="Random class sets of each size.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Class sets and images follow from it.")] = 0,
    macs: Annotated[str, typer.Option(help="Budgets: ratios of the full model's MACs.")] = "0.3",
    images: Annotated[int, typer.Option(min=2, help="Unlabelled images a class: to merge on, and others.")] = 50,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """How well a submodel tells images of classes it does not serve, by score; and its calibration on those it does.

    Example: python -m benchmarks fallback --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 2,5 --draws 10 --macs 0.3 --json benchmarks/results/fallback-vgg16.json
    """
    budgets = ratios(macs)
    inputs = Inputs.load(model, weights, data, test, threads)
    sets = inputs.sets(classes, draws, seed)
    options: dict[str, str | int | float | None] = {
        **inputs.options,
        "classes": classes,
        "draws": draws,
        "seed": seed,
        "macs": macs,
        "images": images,
        "threads": threads,
    }
    settings = {**inputs.settings, "images": images}
    record = open_record(file, "fallback", settings, command_line("fallback", file, **options), fresh)
    with bars("fallback") as (on_row, on_phase):
        trial = Trial(inputs, images, on_phase)
        sweep(record, file, trial.keys(sets, budgets, seed), trial.measure, on_row)
