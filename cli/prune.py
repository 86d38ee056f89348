"""`fedcaptor prune`: what the engine does for one model and one class set, with its figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.data.source import Dataset, load
from common.data.splits import split
from common.errors import ConfigError, PlanError
from common.planner import Budget
from common.torch_engine.base import BaseModel
from common.torch_engine.forward import logits, normalise
from common.torch_engine.network import save_state
from common.torch_engine.prune import Evidence
from common.torch_engine.tolerance import smallest_within


def load_base(model: str, weights: Path, data: Dataset) -> BaseModel:
    """The base model for images of this data set's shape."""
    _, height, width, channels = data.x.shape
    return BaseModel.load(weights, model, (channels, height, width))


def prune_model(
    model: str,
    weights: Path,
    source: str,
    classes: str,
    budget: Budget,
    tolerance: float | None,
    calibration: int,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    """Figures of one pruning: calibrated on the reference part, tested on the phones' part of the data.

    With `tolerance`: the smallest submodel within `budget` that disagrees with the full model, limited to the classes,
    on at most this share of the reference images that it was not calibrated on. Raises PlanError when none does.
    """
    data = load(source)
    base = load_base(model, weights, data)
    needed = _parse(classes, base.groups.classes)
    parts = split(data)
    rng = np.random.default_rng(seed)
    seen = np.concatenate([_some(parts["reference"], data.y, c, calibration, rng) for c in needed])
    test = parts["phones"][np.isin(data.y[parts["phones"]], needed)]
    evidence = Evidence.gather(base, needed, data.x[seen], seed=seed)
    if tolerance is None:
        submodel, verified = evidence.submodel(budget), {}
    else:
        held = _held_out(parts["reference"], seen, data.y, needed)
        found = smallest_within(evidence, budget, data.x[held], tolerance)
        submodel = found.submodel
        verified = {"disagreement": round(found.disagreement, 4), "verifying_images": len(held)}
        if found.disagreement > tolerance:
            raise PlanError(
                f"tolerance is {tolerance}, the largest submodel within the budgets disagrees on "
                f"{found.disagreement:.4f} of {len(held)} images: raise the budgets or the tolerance"
            )

    truth, x = data.y[test], normalise(data.x[test], base.mean, base.std)
    scores = logits(base.module, x)
    if out is not None:
        state = {name: tensor.numpy() for name, tensor in submodel.module.state_dict().items()}
        save_state(
            out, state, {"model": model, "plan": submodel.plan.to_json(), "mean": str(base.mean), "std": str(base.std)}
        )
    return {
        "classes": needed.tolist(),
        "accuracy_full": _share(scores.argmax(1) == truth),
        "accuracy_full_limited": _share(needed[scores[:, needed].argmax(1)] == truth),
        "accuracy": _share(submodel.predict(data.x[test]) == truth),
        "macs_ratio": round(submodel.macs_ratio(), 4),
        "parameters_ratio": round(submodel.parameters_ratio(), 4),
        "file_bytes_at_most": base.groups.file_bytes(submodel.plan.counts()),
        "latency_ratio": round(latency_ratio(submodel.module, base.module, x[:8]), 4),
        "test_images": len(test),
        "calibration_images": len(seen),
        **verified,
    }


@torch.no_grad()
def latency_ratio(small: nn.Module, full: nn.Module, x: torch.Tensor, rounds: int = 15) -> float:
    """Median over paired runs on one thread of (small / full) seconds for the batch `x`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for _ in range(rounds + 2):
            times = []
            for module in (small, full):
                start = time.perf_counter()
                module(x)
                times.append(time.perf_counter() - start)
            ratios.append(times[0] / times[1])
        return float(np.median(ratios[2:]))
    finally:
        torch.set_num_threads(threads)


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 4)


def _parse(classes: str, available: int) -> np.ndarray:
    try:
        needed = np.unique([int(c) for c in classes.split(",")])
    except ValueError:
        raise ConfigError(f"classes are {classes!r}, must be labels such as 3,5") from None
    if needed[0] < 0 or needed[-1] >= available:
        raise ConfigError(f"classes are {classes}, labels of this model lie in 0..{available - 1}")
    return needed


def _held_out(reference: np.ndarray, seen: np.ndarray, labels: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Reference images of the needed classes that were not seen. Raises ConfigError when a class has none."""
    rest = np.setdiff1d(reference[np.isin(labels[reference], needed)], seen)
    for label in needed:
        if not (labels[rest] == label).any():
            raise ConfigError(f"no reference image of class {label} is left to verify on: lower --calibration")
    return rest


def _some(pool: np.ndarray, labels: np.ndarray, label: int, count: int, rng: np.random.Generator) -> np.ndarray:
    own = pool[labels[pool] == label]
    if len(own) == 0:
        raise ConfigError(f"the data has no reference image of class {label}: choose another class or more data")
    return rng.choice(own, min(count, len(own)), replace=False)
