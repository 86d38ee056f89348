"""One row of the pruning benchmark: cut, recalibrate, tune, and judge on the test images of the needed classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.peers import PEERS
from benchmarks.progress import OnPhase
from benchmarks.subsets import Pool, Sample
from fedcaptor.common.arrays import Images
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.factory import limited
from fedcaptor.common.torch_engine.recalibrate import recalibrate
from fedcaptor.common.torch_engine.strategies import STRATEGIES, Prepared, Task
from fedcaptor.common.torch_engine.tuning import Tuned, tune

OURS = ("reconstruct", "reconstruct-agnostic", "reconstruct-fisher")
RATES = (5e-4, 1e-3)
"""Learning rates of short tuning: all but ours take the better of both on held-out images, ours the engine's own."""

STEPS = 4000
"""Of short tuning at most; in large networks the seconds end it before."""

BATCH = 512

T = TypeVar("T")
Classes = tuple[int, ...]
Labels = npt.NDArray[np.int64]


@dataclass(eq=False)
class Latest(Generic[T]):
    """What `make` gave for the last arguments: keys come sorted, and one piece of evidence is large."""

    make: Callable[..., T]
    arguments: tuple[Any, ...] | None = None
    value: Any = None

    def __call__(self, *arguments: Any) -> T:
        if self.arguments != arguments:
            self.arguments, self.value = None, None
            self.value = self.make(*arguments)
            self.arguments = arguments
        found: T = self.value
        return found


@dataclass(frozen=True)
class Score:
    """Share of right answers, and that of the class with the fewest."""

    mean: float
    worst_class: float

    @classmethod
    def of(cls, answers: Labels, truth: Labels) -> Score:
        right = answers == truth
        return cls(float(right.mean()), min(float(right[truth == label].mean()) for label in np.unique(truth)))


@dataclass(frozen=True, eq=False)
class Cut:
    """`raw`, `again`: scores of the submodel as the strategy leaves it, and with batch norms recalibrated. `seconds`:
    of evidence and submodel.
    """

    submodel: Submodel
    recalibrated: Submodel
    raw: Score
    again: Score
    seconds: float


@dataclass(frozen=True)
class Setting:
    """What strategies of one draw share; `seed`: the benchmark's, then the number of the draw; `mixture`: as in
    `Pool.sample`.
    """

    classes: Classes
    calibration: int
    seed: tuple[int, int]
    mixture: float | None = None


@dataclass(eq=False)
class Trial:
    """Measures rows; keys that come sorted share their evidence. `on_phase`: what is being done. `clock`: of tuning."""

    base: BaseModel
    pool: Pool
    tune_per_class: int
    tune_seconds: float
    on_phase: OnPhase = lambda name, done, total: None
    clock: Callable[[], float] = time.monotonic
    _known: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sample, self._reference = Latest(self._draw_sample), Latest(self._judge_full)
        self._prepared, self._cut = Latest(self._prepare), Latest(self._make_cut)

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of one row."""
        seed = (key["seed"], key["draw"])
        setting = Setting(tuple(key["classes"]), key["calibration_per_class"], seed, key["mixture"])
        self.on_phase(f"{key['strategy']} {key['macs_target']:g}", 0, 1)
        cut = self._cut(setting, key["strategy"], key["macs_target"])
        figures = self._reference(setting) | {
            "macs_ratio": cut.submodel.macs_ratio,
            "parameters_ratio": cut.submodel.parameters_ratio,
            "accuracy_recalibrated": cut.again.mean,
            "accuracy_recalibrated_worst_class": cut.again.worst_class,
        }
        score, seconds = cut.raw, cut.seconds
        if key["tune"] == "short":
            tuned, of_tuning = self._tune(cut, setting, key["strategy"])
            score, seconds = self._judge(tuned, setting.classes), seconds + of_tuning["tune_seconds"]
            figures |= of_tuning
        self.on_phase("", 1, 1)
        return figures | {"accuracy": score.mean, "accuracy_worst_class": score.worst_class, "seconds": seconds}

    def _draw_sample(self, setting: Setting) -> Sample:
        return self.pool.sample(
            setting.classes, setting.calibration, self.tune_per_class, setting.seed, setting.mixture
        )

    def _prepare(self, setting: Setting, strategy: str) -> tuple[Prepared, float]:
        """Evidence, and the seconds that it took."""
        sample = self._sample(setting)
        task = Task(self.base, np.array(setting.classes), sample.images, sample.everything, sum(setting.seed))
        began = time.perf_counter()
        prepared: Prepared = STRATEGIES[strategy](task) if strategy in STRATEGIES else PEERS[strategy](task)
        return prepared, time.perf_counter() - began

    def _make_cut(self, setting: Setting, strategy: str, macs: float) -> Cut:
        prepared, seconds = self._prepared(setting, strategy)
        began = time.perf_counter()
        submodel = prepared.submodel(Budget(macs=macs))
        seconds += time.perf_counter() - began
        again = recalibrate(submodel, self._sample(setting).images)
        raw, better = (self._judge(each, setting.classes) for each in (submodel, again))
        return Cut(submodel, again, raw, better, seconds)

    def _judge_full(self, setting: Setting) -> dict[str, Any]:
        """The full model on the test images of the needed classes."""
        needed = np.array(setting.classes)
        by_class = [self._logits(label) for label in setting.classes]
        scores, truth = np.concatenate(by_class), np.repeat(needed, [len(part) for part in by_class])
        among = Score.of(needed[scores[:, needed].argmax(1)], truth)
        again = self._judge(recalibrate(limited(self.base, needed), self._sample(setting).images), setting.classes)
        return {
            "accuracy_full": Score.of(scores.argmax(1), truth).mean,
            "accuracy_full_limited": among.mean,
            "accuracy_full_limited_worst_class": among.worst_class,
            "accuracy_full_limited_recalibrated": again.mean,
        }

    def _logits(self, label: int) -> npt.NDArray[np.float32]:
        """Of the full model on the test images of a class, [images, outputs]; once a process."""
        if label not in self._known:
            self.on_phase("full model", 0, 1)
            self._known[label] = in_batches(self.base, self.pool.test.x[self.pool.test.y == label])
        return self._known[label]

    def _judge(self, submodel: Submodel, classes: Classes) -> Score:
        chosen = np.flatnonzero(np.isin(self.pool.test.y, classes))
        answers = [submodel.predict(self.pool.test.x[part]) for part in _batches(chosen)]
        return Score.of(np.concatenate(answers), self.pool.test.y[chosen])

    def _tune(self, cut: Cut, setting: Setting, strategy: str) -> tuple[Submodel, dict[str, Any]]:
        """The best on held-out images, and how it was made. Tuning begins with the better of raw and recalibrated."""
        sample = self._sample(setting)
        full = in_batches(self.base, sample.held)[:, cut.submodel.classes].argmax(1)
        agreement = [float((s.scores(sample.held).argmax(1) == full).mean()) for s in (cut.submodel, cut.recalibrated)]
        start = cut.recalibrated if agreement[1] > agreement[0] else cut.submodel
        runs: list[tuple[Tuned, float]] = []
        for rate in (None,) if strategy in OURS else RATES:
            self.on_phase(f"{strategy} tuning", len(runs), len(RATES))
            began, seed = self.clock(), sum(setting.seed)
            most: dict[str, Any] = {"steps": STEPS, "seconds": self.tune_seconds, "clock": self.clock}
            tuned = tune(start, sample.tune, sample.held, **most, rate=rate, seed=seed)
            runs.append((tuned, self.clock() - began))
        best, seconds = max(runs, key=lambda run: run[0].after)
        return best.submodel, {
            "tune_from_recalibrated": start is cut.recalibrated,
            "tune_rate": best.rate,
            "tune_steps": best.steps,
            "tune_seconds": seconds,
            "agreement_before": best.before,
            "agreement_after": best.after,
        }


def in_batches(base: BaseModel | Submodel, images: Images) -> npt.NDArray[np.float32]:
    """Logits [N, classes] of a network, for more images than fit into memory as floats."""
    return np.concatenate([base.scores(part) for part in _batches(images)])


def _batches(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return np.array_split(array, -(-len(array) // BATCH))
