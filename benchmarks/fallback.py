"""How a submodel knows what it does not serve: out-of-set scores side by side, and how far its probabilities hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from typer import Option

from benchmarks.batches import in_batches
from benchmarks.command import SHARED, Measure
from benchmarks.inputs import NetworkBenchmark
from benchmarks.last_call import remembers_last_call
from benchmarks.options import Budgets, Classes, Draws, Model, Test, Threads, Weights
from benchmarks.out_of_set import calibration_error, inside, rejecting, temperature, told_apart
from benchmarks.progress import OnPhase
from benchmarks.record import Row, ratios
from fedcaptor.client.fallback import out_of_set_score
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.outputs import features, last_layer, refitted
from fedcaptor.common.torch_engine.prune import Evidence

KINDS = ("energy", "max-softmax", "max-logit")
AGAINST = ("max-logit-kept", "max-logit-refitted")
"""The last layer has outputs for the other classes, as merged or refitted, and the score is held against them."""
SCORES = (*KINDS, *AGAINST, "reject-logits", "reject-features", "full-model")

Floats = npt.NDArray[np.float32]
Draw = tuple[tuple[int, ...], int, int]
"""Target classes, the benchmark's seed, number of the draw."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Images through a network: `features` [N, D] as its last layer reads them, `z` [N, C] logits of all classes."""

    features: npt.NDArray[np.float64]
    z: Floats

    @classmethod
    def by(cls, submodel: Submodel, images: Images) -> Seen:
        return cls(*features(submodel, images))


@dataclass(frozen=True, kw_only=True)
class Fallback(NetworkBenchmark):
    """How well a submodel tells images of classes it does not serve, by score; and its calibration on those it does.

    Example: python -m benchmarks fallback --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 2,5 --draws 10 --macs 0.3 --json benchmarks/results/fallback-vgg16.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of unlabelled images; split `train` where it has some.")]
    test: Test = None
    classes: Classes = "2,5"
    draws: Draws = 10
    seed: Annotated[int, Option(min=0, help="Class sets and images follow from it.")] = 0
    macs: Budgets = "0.3"
    images: Annotated[int, Option(min=2, help="Unlabelled images a class: to merge on, and others."), SHARED] = 50
    threads: Threads = None

    def __post_init__(self) -> None:
        ratios(self.macs)

    def row_keys(self) -> list[Row]:
        shared = {"model": self.inputs.base.groups.model}
        return [
            {**shared, "classes": classes, "macs_target": ratio, "score": score, "seed": self.seed, "draw": draw}
            for draw, classes in self.numbered_sets()
            for ratio in ratios(self.macs)
            for score in SCORES
        ]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        yield FallbackMeasurement(self, on_phase).measure


@dataclass(eq=False)
class FallbackMeasurement:
    """Measures rows; keys that come sorted share their submodel. The settings' images are taken once for merging, and
    once more to calibrate and to learn what other classes look like.
    """

    settings: Fallback
    on_phase: OnPhase

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row; those of the submodel are the same for all scores."""
        submodel, scores = self._measure((tuple(key["classes"]), key["seed"], key["draw"]), key["macs_target"])
        return {**scores[key["score"]], **submodel}

    @remembers_last_call
    def _evidence(self, draw: Draw) -> tuple[Evidence, Images, Images]:
        """Gather evidence of the target classes; return its images, and as many others that nothing is merged on."""
        classes, *seed = draw
        inputs, images = self.settings.inputs, self.settings.images
        sample = inputs.splits.sample(classes, images, 10 * images, seed)
        evidence = Evidence.gather(inputs.base, np.array(classes), sample.images, seed=sum(seed))
        return evidence, sample.images, sample.held

    @remembers_last_call
    def _measure(self, draw: Draw, macs: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Test one network, whose last layer keeps all outputs, with all scores: what it says of the target
        ones is what the submodel without the others says.
        """
        self.on_phase(f"{len(draw[0])} classes, {macs:g}", 0, 1)
        inputs, target = self.settings.inputs, np.array(draw[0])
        base, everything = inputs.base, np.arange(inputs.base.groups.classes)
        evidence, merged_on, held = self._evidence(draw)
        submodel = evidence.build(allocate(base.groups, evidence.curves, everything, Budget(macs=macs)))
        others = inputs.available[~np.isin(inputs.available, target)]
        reference = inputs.splits.sample(others.tolist(), self.settings.images, 10, draw[1:]).images
        own, other, test = (Seen.by(submodel, images) for images in (held, reference, inputs.splits.test.x))
        full = in_batches(base, held)[:, target]
        named = np.concatenate([target[full.argmax(1)], others[in_batches(base, reference)[:, others].argmax(1)]])
        again = refitted(submodel, np.concatenate([merged_on, reference]), others)
        scores = _scores(test, own, other, named, target) | {
            "max-logit-refitted": _against(_outputs(again, test), target),
            "full-model": inside(self._test, _mask(target, self._test)),
        }
        own_images = np.isin(inputs.splits.test.y, target)
        figures = {name: told_apart(score, own_images) for name, score in scores.items()}
        self.on_phase("", 1, 1)
        return self._calibration(own.z[:, target], full, test, target) | {"macs_ratio": submodel.macs_ratio}, figures

    def _calibration(self, own: Floats, full: Floats, test: Seen, target: Indices) -> dict[str, float]:
        """Judge the probabilities of target classes, on their test images; the temperature is fitted on other images,
        to which the submodel answers `own` and the full model `full`, both [N, k].
        """
        truth = self.settings.inputs.splits.test.y
        own_images = np.isin(truth, target)
        columns = np.searchsorted(target, truth[own_images])
        z, limited = test.z[own_images][:, target], self._test[own_images][:, target]
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
        """Return the full model's logits [test images, C]; once a process."""
        self.on_phase("full model", 0, 1)
        return in_batches(self.settings.inputs.base, self.settings.inputs.splits.test.x)


def _scores(test: Seen, own: Seen, other: Seen, named: Indices, target: Indices) -> dict[str, npt.NDArray[Any]]:
    """Score test images; `named`: the full model's answers to `own` and `other` images, to learn reject classes."""
    mask = _mask(target, test.z)
    found = {kind: out_of_set_score(test.z[:, mask], kind) for kind in KINDS}
    of_logits, of_features = (np.concatenate([getattr(own, kind), getattr(other, kind)]) for kind in ("z", "features"))
    return found | {
        "max-logit-kept": _against(test.z, target),
        "reject-logits": rejecting(of_logits[:, mask], named, target, test.z[:, mask]),
        "reject-features": rejecting(of_features, named, target, test.features),
    }


def _outputs(submodel: Submodel, seen: Seen) -> Floats:
    """Return logits of another last layer on the same features."""
    last = last_layer(submodel)
    return np.asarray(last(torch.from_numpy(seen.features).to(last.weight.dtype)).detach())


def _against(z: Floats, target: Indices) -> npt.NDArray[Any]:
    """Return the score, held against the outputs for other classes."""
    mask = _mask(target, z)
    return out_of_set_score(z[:, mask], "max-logit", z[:, ~mask])


def _mask(target: Indices, z: Floats) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(z.shape[1]), target)
