"""One row of the pruning benchmark: prune, recalibrate, tune, and test on the test images of the target classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.batches import batches, in_batches
from benchmarks.last_call import remembers_last_call
from benchmarks.peers import PEERS
from benchmarks.progress import OnPhase
from benchmarks.subsets import ImageSample, ImageSplits
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.factory import restricted
from fedcaptor.common.torch_engine.recalibrate import recalibrate
from fedcaptor.common.torch_engine.strategies import STRATEGIES, SubmodelSource, Task
from fedcaptor.common.torch_engine.tuning import Tuned, tune

OURS = ("reconstruct", "reconstruct-agnostic", "reconstruct-fisher")
RATES = (5e-4, 1e-3)
"""Learning rates of short tuning: all but ours take the better of both on held-out images, ours the engine's own."""

STEPS = 4000
"""Short tuning takes at most so many; in large networks the seconds end it before."""

Classes = tuple[int, ...]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers, and that of the class with the fewest."""

    mean: float
    worst_class: float

    @classmethod
    def of(cls, answers: Labels, truth: Labels) -> Accuracy:
        right = answers == truth
        return cls(float(right.mean()), min(float(right[truth == label].mean()) for label in np.unique(truth)))


@dataclass(frozen=True, eq=False)
class Pruned:
    """`raw`, `again`: accuracies of the submodel as the strategy leaves it, and with batch norms recalibrated.
    `seconds`: of evidence and submodel.
    """

    submodel: Submodel
    recalibrated: Submodel
    raw: Accuracy
    again: Accuracy
    seconds: float


@dataclass(frozen=True)
class Draw:
    """What the strategies of one draw share; `seed`: the benchmark's, then the number of the draw; `mixture`: as in
    `ImageSplits.sample`.
    """

    classes: Classes
    calibration: int
    seed: tuple[int, int]
    mixture: float | None = None


@dataclass(eq=False)
class PruningMeasurement:
    """Measures rows; keys that come sorted share their evidence. `on_phase`: what is being done. `clock`: of tuning."""

    base: BaseModel
    splits: ImageSplits
    tune_per_class: int
    tune_seconds: float
    on_phase: OnPhase = lambda name, done, total: None
    clock: Callable[[], float] = time.monotonic
    _logits_of: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        seed = (key["seed"], key["draw"])
        draw = Draw(tuple(key["classes"]), key["calibration_per_class"], seed, key["mixture"])
        self.on_phase(f"{key['strategy']} {key['macs_target']:g}", 0, 1)
        pruned = self._prune(draw, key["strategy"], key["macs_target"])
        figures = self._test_full(draw) | {
            "macs_ratio": pruned.submodel.macs_ratio,
            "parameters_ratio": pruned.submodel.parameters_ratio,
            "accuracy_recalibrated": pruned.again.mean,
            "accuracy_recalibrated_worst_class": pruned.again.worst_class,
        }
        score, seconds = pruned.raw, pruned.seconds
        if key["tune"] == "short":
            tuned, of_tuning = self._tune(pruned, draw, key["strategy"])
            score, seconds = self._test(tuned, draw.classes), seconds + of_tuning["tune_seconds"]
            figures |= of_tuning
        self.on_phase("", 1, 1)
        return figures | {"accuracy": score.mean, "accuracy_worst_class": score.worst_class, "seconds": seconds}

    @remembers_last_call
    def _sample(self, draw: Draw) -> ImageSample:
        return self.splits.sample(draw.classes, draw.calibration, self.tune_per_class, draw.seed, draw.mixture)

    @remembers_last_call
    def _prepare(self, draw: Draw, strategy: str) -> tuple[SubmodelSource, float]:
        """Gather evidence, and count the seconds that it took."""
        sample = self._sample(draw)
        task = Task(self.base, np.array(draw.classes), sample.images, sample.everything, sum(draw.seed))
        began = time.perf_counter()
        prepared: SubmodelSource = STRATEGIES[strategy](task) if strategy in STRATEGIES else PEERS[strategy](task)
        return prepared, time.perf_counter() - began

    @remembers_last_call
    def _prune(self, draw: Draw, strategy: str, macs: float) -> Pruned:
        prepared, seconds = self._prepare(draw, strategy)
        began = time.perf_counter()
        submodel = prepared.submodel(Budget(macs=macs))
        seconds += time.perf_counter() - began
        again = recalibrate(submodel, self._sample(draw).images)
        raw, better = (self._test(each, draw.classes) for each in (submodel, again))
        return Pruned(submodel, again, raw, better, seconds)

    @remembers_last_call
    def _test_full(self, draw: Draw) -> dict[str, Any]:
        """Test the full model on images of the target classes."""
        target = np.array(draw.classes)
        by_class = [self._logits(label) for label in draw.classes]
        scores, truth = np.concatenate(by_class), np.repeat(target, [len(part) for part in by_class])
        among = Accuracy.of(target[scores[:, target].argmax(1)], truth)
        again = self._test(recalibrate(restricted(self.base, target), self._sample(draw).images), draw.classes)
        return {
            "accuracy_full": Accuracy.of(scores.argmax(1), truth).mean,
            "accuracy_full_limited": among.mean,
            "accuracy_full_limited_worst_class": among.worst_class,
            "accuracy_full_limited_recalibrated": again.mean,
        }

    def _logits(self, label: int) -> npt.NDArray[np.float32]:
        """Return the full model's on the test images of a class, [images, outputs]; once a process."""
        if label not in self._logits_of:
            self.on_phase("full model", 0, 1)
            self._logits_of[label] = in_batches(self.base, self.splits.test.x[self.splits.test.y == label])
        return self._logits_of[label]

    def _test(self, submodel: Submodel, classes: Classes) -> Accuracy:
        chosen = np.flatnonzero(np.isin(self.splits.test.y, classes))
        answers = [submodel.predict(self.splits.test.x[part]) for part in batches(chosen)]
        return Accuracy.of(np.concatenate(answers), self.splits.test.y[chosen])

    def _tune(self, pruned: Pruned, draw: Draw, strategy: str) -> tuple[Submodel, dict[str, Any]]:
        """Return the best on held-out images, and how it was made. Tuning begins with the better of raw and
        recalibrated.
        """
        sample = self._sample(draw)
        full = in_batches(self.base, sample.held)[:, pruned.submodel.classes].argmax(1)
        raw, again = pruned.submodel, pruned.recalibrated
        agreement = [float((model.scores(sample.held).argmax(1) == full).mean()) for model in (raw, again)]
        start = again if agreement[1] > agreement[0] else raw
        runs: list[tuple[Tuned, float]] = []
        for rate in (None,) if strategy in OURS else RATES:
            self.on_phase(f"{strategy} tuning", len(runs), len(RATES))
            began, seed = self.clock(), sum(draw.seed)
            most: dict[str, Any] = {"steps": STEPS, "seconds": self.tune_seconds, "clock": self.clock}
            tuned = tune(start, sample.tune, sample.held, **most, rate=rate, seed=seed)
            runs.append((tuned, self.clock() - began))
        best, seconds = max(runs, key=lambda run: run[0].after)
        return best.submodel, {
            "tune_from_recalibrated": start is again,
            "tune_rate": best.rate,
            "tune_steps": best.steps,
            "tune_seconds": seconds,
            "agreement_before": best.before,
            "agreement_after": best.after,
        }
