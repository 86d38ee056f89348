"""What pruning does to a network in a file, for one class set and some budgets, in figures on labelled data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor._evidence import sees_all, target_classes_of, warn_of_normalisation
from fedcaptor._measured_budgets import (
    Files,
    corrected,
    latency_figures,
    latency_here,
    require_latency,
    require_size,
    with_file_sizes,
)
from fedcaptor._verification import HELD, judging_of, table_of, tuned_where_it_helps, within_tolerance
from fedcaptor.common import costs
from fedcaptor.common.arrays import Images
from fedcaptor.common.class_names import fitting_names, labels_of, named
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.data.splits import split
from fedcaptor.common.energy import energy_ratio
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import write_whole
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.planner import Budget, require_possible
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.export import (
    WEIGHTS,
    Format,
    Precision,
    agreement,
    content,
    formats_of,
    precision_of,
)
from fedcaptor.common.torch_engine.latency import measured_latency_ratio
from fedcaptor.common.torch_engine.recalibrate import recalibrate
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.torch_engine.strategies import PreparedStrategy, Task, prepare

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation by channel."""


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
    statistics: Statistics | None = None
    half: bool = False
    int8: bool = False
    latency_table: Path | None = None

    @property
    def precision(self) -> Precision:
        """What written programs compute in. Raises ConfigError for `half` and `int8` together."""
        return precision_of(self.half, self.int8)


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
    formats = formats_of(request.out, request.precision)  # before the work
    _require_table(request)
    if request.out and len(request.budgets) > 1:
        raise ConfigError(f"{len(request.budgets)} budgets and one --out: choose a budget to write its submodel")
    data = load(request.source)
    _, height, width, channels = data.x.shape
    base = BaseModel.load(request.weights, request.model, (channels, height, width), request.statistics)
    names = fitting_names(base.groups.classes, base.class_names, data.names, data.name)
    base = replace(base, class_names=names)
    target = target_classes_of(labels_of(request.classes.split(","), names), base.groups.classes)
    part = _Parts.draw(data, target, request)
    files = Files(tuple(formats.values()) or (Format(WEIGHTS),), data.x[part.seen])
    budgets = [with_file_sizes(base, target, budget, files) for budget in request.budgets]
    for budget in budgets:
        require_possible(base.groups, len(target), budget)
    warn_of_normalisation(base, data.x[part.seen])
    first, table = request.budgets[0], None
    if first.latency is not None:
        file = request.latency_table or request.weights.with_suffix(".latency.json")
        table = table_of(base, file, first.multiple, on_layer)
    task = Task(base, target, data.x[part.seen], data.x[part.seen_of_all], request.seed)
    selection = prepare(request.strategy, task)
    full = _full(base, target, data.x[part.test], data.y[part.test])
    results = []
    for budget in budgets:
        result = _pruned(selection, replace(budget, table=table), part, request, files, on_step)
        about = {"classes": target.tolist(), "class_names": named(target, names), "strategy": request.strategy, **full}
        results.append(about | result | {"seconds": round(time.perf_counter() - start, 2)})
        start = time.perf_counter()
    return results


def _require_table(request: Request) -> None:
    """Raises ConfigError for a latency table that is not there, or that no budget asks for."""
    if (file := request.latency_table) is None:
        return
    if request.budgets[0].latency is None:
        raise ConfigError(f"latency table {file} is given without a latency budget: add --latency 0.5, or leave it out")
    if not file.exists():
        raise ConfigError(f"{file} is no latency table: measure one with python -m fedcaptor.client.latency_table")


def _pruned(
    selection: PreparedStrategy,
    budget: Budget,
    part: _Parts,
    request: Request,
    files: Files,
    on_step: Callable[[int], None] | None,
) -> dict[str, Any]:
    """One submodel: chosen, recalibrated and tuned where asked for, measured, and written where the budgets hold."""
    x, y = part.data.x, part.data.y
    planned = corrected(selection, budget, files)
    submodel, more = _selected(selection, planned, request.tolerance, lambda: x[part.rest()])
    if request.recalibrate:
        submodel = recalibrate(submodel, x[part.seen])
    if request.tune_steps:
        submodel, tuning = _tuned(submodel, part, request, on_step)
        more |= tuning
    result = _figures(submodel, x[part.test], y[part.test])
    latency = measured_latency_ratio(submodel.module, submodel.base.module, submodel.base.groups.input_shape)
    require_latency(latency, latency_here(budget))
    result |= latency_figures(latency) | _written(submodel, budget.bytes, files, request, x[part.test])
    if budget.table is not None:
        result |= _predicted(submodel, budget.table)
    return result | {"test_images": len(part.test), "calibration_images": len(part.seen), **more}


def _written(
    submodel: Submodel, most: int | None, files: Files, request: Request, test: Images
) -> dict[str, dict[str, int] | float]:
    """Bytes of each file, by its ending, and where one computes in less than single precision the share of `test`
    images that it answers as the submodel does. Raises PlanError, with no file written, where one is too large.
    """
    standalone = Standalone.of(submodel)
    found = {form: content(standalone, form, files.images) for form in files.formats}
    for form, (made, _) in found.items():
        require_size(form.name, len(made), most)
    for path in request.out:
        write_whole(path, found[Format(path.suffix, request.precision)][0])
    sizes = {form.name: len(made) for form, (made, _) in found.items()}
    figures: dict[str, dict[str, int] | float] = {"file_bytes": sizes}
    programs = [program for form, (_, program) in found.items() if form.precision is not Precision.single]
    if programs:
        figures["file_agreement"] = round(min(agreement(standalone, program, test) for program in programs), 4)
    return figures


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
    submodel: Submodel, part: _Parts, request: Request, on_step: Callable[[int], None] | None
) -> tuple[Submodel, dict[str, float]]:
    """Judged on a quarter of all reference images, held out; the others teach, those observed too."""
    rest, x = np.random.default_rng(request.seed).permutation(part.rest()), part.data.x
    judging = judging_of(len(part.seen) + len(rest))
    teaching = x[np.concatenate([part.seen, rest[judging:]])]
    return tuned_where_it_helps(submodel, teaching, x[rest[:judging]], request.tune_steps, request.seed, on_step)


def _full(base: BaseModel, target: np.ndarray, images: Images, truth: np.ndarray) -> dict[str, float]:
    scores = base.scores(images)
    return {
        "accuracy_full": _share(scores.argmax(1) == truth),
        "accuracy_full_limited": _share(target[scores[:, target].argmax(1)] == truth),
    }


def _figures(submodel: Submodel, images: Images, truth: np.ndarray) -> dict[str, Any]:
    return {
        "accuracy": _share(submodel.predict(images) == truth),
        "macs_ratio": round(submodel.macs_ratio, 4),
        "parameters_ratio": round(submodel.parameters_ratio, 4),
        "energy_ratio": round(energy_ratio(submodel.base.groups, submodel.plan.counts()), 4),
    }


def budgets_of(
    macs: str | None,
    parameters: float | None,
    size: int | None,
    latency: float | None,
    tolerance: float | None,
    multiple: int = Budget.multiple,
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
    return tuple(Budget(ratio, multiple, parameters, size, latency) for ratio in ratios)


def statistics_of(mean: str | None, std: str | None) -> Statistics | None:
    """Mean and standard deviation by channel, from options. Raises ConfigError for one alone, or what is no number."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ConfigError("one of --mean and --std is given: give both")
    try:
        means, deviations = (tuple(float(value) for value in given.split(",")) for given in (mean, std))
    except ValueError:
        raise ConfigError(f"mean is {mean!r}, std {std!r}: must be numbers such as 0.485,0.456,0.406") from None
    return means, deviations


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Places in the data. `seen`: calibration images of the target classes, three quarters of the reference images at
    most where some are held out; `seen_of_all`: of all classes, for the strategies that look at them. `test`: what the
    figures are measured on.
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

        held = HELD if request.tolerance is not None or request.tune_steps else 0.0

        def some(classes: np.ndarray) -> np.ndarray:
            pools = [reference[labels[reference] == label] for label in classes]
            most = [min(request.calibration, len(own) - int(np.ceil(held * len(own)))) for own in pools]
            return np.concatenate(
                [rng.choice(own, count, replace=False) for own, count in zip(pools, most, strict=True)]
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
                    f"no reference image of class {label} is left to verify or tune on: give more images of it"
                )
        return rest
