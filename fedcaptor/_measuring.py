"""What pruning does to a network in a file, for one class set and some budgets, in figures on labelled data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor._evidence import MOST_HELD, sees_all, target_classes_of
from fedcaptor._verification import table_of, within_tolerance
from fedcaptor.common import costs
from fedcaptor.common.arrays import Images
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.planner import Budget, require_possible
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.export import check_files, export
from fedcaptor.common.torch_engine.latency import measured_latency_ratio
from fedcaptor.common.torch_engine.recalibrate import recalibrate
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.torch_engine.strategies import PreparedStrategy, Task, prepare
from fedcaptor.common.torch_engine.tuning import tune


@dataclass(frozen=True)
class Request:
    """What `fedcaptor prune` was asked for; its options' help says what each field means."""

    model: str
    weights: Path
    source: str
    classes: str
    budgets: tuple[Budget, ...]  # which differ in MACs alone
    tolerance: float | None = None
    calibration: int = 50
    seed: int = 0
    out: tuple[Path, ...] = ()
    strategy: str = "reconstruct"
    recalibrate: bool = False
    tune_steps: int = 0


def measure(
    request: Request,
    on_step: Callable[[int], None] | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Figures for each budget: calibrated on the reference part, tested on the phones' part of the data.

    With a tolerance: the smallest submodel within the budget that disagrees with the full model, limited to the
    classes, on at most this share of the reference images that it was not calibrated on; PlanError when none does.
    Evidence is gathered once, for all budgets. `seconds`: since the one before.
    `on_step`: tuning steps done. `on_layer`: layers measured and their number, for a budget of latency.
    """
    start = time.perf_counter()
    require_seed(request.seed)
    check_files(request.out)  # before the work
    if request.out and len(request.budgets) > 1:
        raise ConfigError(f"{len(request.budgets)} budgets and one --out: choose a budget to write its submodel")
    data = load(request.source)
    _, height, width, channels = data.x.shape
    base = BaseModel.load(request.weights, request.model, (channels, height, width))
    target = _parse(request.classes, base.groups.classes)
    for budget in request.budgets:
        require_possible(base.groups, len(target), budget)
    part = _Parts.draw(data, target, request)
    first, table = request.budgets[0], None
    if first.latency is not None:
        table = table_of(base, request.weights.with_suffix(".latency.json"), first.multiple, on_layer)
    task = Task(base, target, data.x[part.seen], data.x[part.seen_of_all], request.seed)
    selection = prepare(request.strategy, task)
    full = _full(base, target, data.x[part.test], data.y[part.test])
    results = []
    for budget in request.budgets:
        result = _pruned(selection, replace(budget, table=table), part, request, on_step)
        about = {"classes": target.tolist(), "strategy": request.strategy, **full}
        results.append(about | result | {"seconds": round(time.perf_counter() - start, 2)})
        start = time.perf_counter()
    return results


def _pruned(
    selection: PreparedStrategy, budget: Budget, part: _Parts, request: Request, on_step: Callable[[int], None] | None
) -> dict[str, Any]:
    """One submodel: chosen, recalibrated and tuned where asked for, written and measured."""
    x, y = part.data.x, part.data.y
    submodel, more = _selected(selection, budget, request.tolerance, lambda: x[part.rest()])
    if request.recalibrate:
        submodel = recalibrate(submodel, x[part.seen])
    if request.tune_steps:
        submodel, tuning = _tuned(submodel, x[part.rest()], request, on_step)
        more |= tuning
    for path in request.out:
        export(Standalone.of(submodel), path)
    result = _figures(submodel, x[part.test], y[part.test])
    if budget.table is not None:
        result |= _predicted(submodel, budget.table)
    return result | {"test_images": len(part.test), "calibration_images": len(part.seen), **more}


def _predicted(submodel: Submodel, table: LatencyTable) -> dict[str, float | str]:
    ratio = costs.predicted_latency_ratio(submodel.base.groups, table, submodel.plan.counts())
    return {"latency_ratio_predicted": round(ratio, 4), "latency_machine": table.machine}


def _selected(
    selection: PreparedStrategy, budget: Budget, tolerance: float | None, held: Callable[[], Images]
) -> tuple[Submodel, dict[str, float]]:
    """The submodel, with what was verified of it on the images `held` out when there is a tolerance."""
    if tolerance is None:
        return selection.submodel(budget), {}
    submodel, measured = within_tolerance(selection, budget, tolerance, held())
    return submodel, measured | {"disagreement": round(measured["disagreement"], 4)}


def _tuned(
    submodel: Submodel, images: Images, request: Request, on_step: Callable[[int], None] | None
) -> tuple[Submodel, dict[str, float | int]]:
    """Tuned on three quarters of `images`, judged on the others."""
    order = np.random.default_rng(request.seed).permutation(len(images))
    judging = min(-(-len(images) // 4), MOST_HELD)
    held, rest = images[order[:judging]], images[order[judging:]]
    found = tune(submodel, rest, held, steps=request.tune_steps, seed=request.seed, on_step=on_step)
    return found.submodel, {
        "agreement_before_tuning": round(found.before, 4),
        "agreement_after_tuning": round(found.after, 4),
        "tuning_steps": found.steps,
        "tuning_images": len(rest),
    }


def _full(base: BaseModel, target: np.ndarray, images: Images, truth: np.ndarray) -> dict[str, float]:
    scores = base.scores(images)
    return {
        "accuracy_full": _share(scores.argmax(1) == truth),
        "accuracy_full_limited": _share(target[scores[:, target].argmax(1)] == truth),
    }


def _figures(submodel: Submodel, images: Images, truth: np.ndarray) -> dict[str, Any]:
    base = submodel.base
    return {
        "accuracy": _share(submodel.predict(images) == truth),
        "macs_ratio": round(submodel.macs_ratio, 4),
        "parameters_ratio": round(submodel.parameters_ratio, 4),
        "file_bytes_at_most": base.groups.file_bytes(submodel.plan.counts()),
        "latency_ratio": round(measured_latency_ratio(submodel.module, base.module, base.groups.input_shape), 4),
    }


def budgets_of(
    macs: str | None, parameters: float | None, size: int | None, latency: float | None, tolerance: float | None
) -> tuple[Budget, ...]:
    """Budgets from options: one for each ratio of `macs`, which the other limits hold with. Where nothing is given, 0.4
    of the MACs, or all of them with a tolerance.
    """
    if (macs, parameters, size, latency) == (None,) * 4:
        macs = "0.4" if tolerance is None else "1"
    try:
        ratios = [None] if macs is None else [float(ratio) for ratio in macs.split(",")]
    except ValueError:
        raise ConfigError(f"macs is {macs!r}, must be ratios such as 0.4 or 0.5,0.3,0.1") from None
    return tuple(Budget(ratio, parameters=parameters, bytes=size, latency=latency) for ratio in ratios)


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4)


def _parse(classes: str, available: int) -> np.ndarray:
    try:
        target = np.unique([int(c) for c in classes.split(",")])
    except ValueError:
        raise ConfigError(f"classes are {classes!r}, must be labels such as 3,5") from None
    return target_classes_of(target, available)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Places in the data. `seen`: calibration images of the target classes; `seen_of_all`: of all classes, for the
    strategies that look at them. `test`: what the figures are measured on.
    """

    data: Dataset
    target: np.ndarray
    reference: np.ndarray
    seen: np.ndarray
    seen_of_all: np.ndarray
    test: np.ndarray

    @classmethod
    def draw(cls, data: Dataset, target: np.ndarray, request: Request) -> _Parts:
        """Raises ConfigError when a target class has no reference image."""
        parts, rng = split(data), np.random.default_rng(request.seed)
        reference, labels = parts["reference"], data.y
        present = np.unique(labels[reference])
        missing = np.setdiff1d(target, present)
        if len(missing):
            raise ConfigError(
                f"the data has no reference image of class {missing[0]}: choose another class or more data"
            )

        def some(classes: np.ndarray) -> np.ndarray:
            pools = [reference[labels[reference] == label] for label in classes]
            return np.concatenate(
                [rng.choice(own, min(request.calibration, len(own)), replace=False) for own in pools]
                or [np.empty(0, np.int64)]
            )

        seen = some(target)
        others = some(np.setdiff1d(present, target) if sees_all(request.strategy) else target[:0])
        test = parts["phones"][np.isin(labels[parts["phones"]], target)]
        return cls(data, target, reference, seen, np.concatenate([seen, others]), test)

    def rest(self) -> np.ndarray:
        """Reference images of the target classes that were not seen. Raises ConfigError when a class has none."""
        labels = self.data.y
        rest = np.setdiff1d(self.reference[np.isin(labels[self.reference], self.target)], self.seen)
        for label in self.target:
            if not (labels[rest] == label).any():
                raise ConfigError(
                    f"no reference image of class {label} is left to verify or tune on: lower --calibration"
                )
        return rest
