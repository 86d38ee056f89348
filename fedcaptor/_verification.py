"""What budgets of time and tolerance, and tuning, need: a latency table, and answers held against held-out images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedcaptor.common.arrays import Images
from fedcaptor.common.errors import DataError, PlanError
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.base import Submodel as Pruned
from fedcaptor.common.torch_engine.latency import measure_table
from fedcaptor.common.torch_engine.strategies import PreparedStrategy
from fedcaptor.common.torch_engine.tolerance import smallest_within
from fedcaptor.common.torch_engine.tuning import judge, tune

OnLayer = Callable[[int, int], None]
OnStep = Callable[[int], None]

HELD = 0.25  # share of the images that is held out for a tolerance or for tuning
MOST_HELD = 500  # images that tuning is judged on: more would take longer than they tell
LEAST_HELD = 12  # images that tuning is judged on: of fewer, all may agree by chance
CHOOSING = 3  # of so many held-out images one chooses among the steps, the others judge


def table_of(
    base: BaseModel, table: LatencyTable | str | Path | None, multiple: int, on_layer: OnLayer | None = None
) -> LatencyTable:
    """A latency table, read from its file; measured here and now, and kept there, when there is none."""
    if isinstance(table, LatencyTable):
        table.check(base.groups)
        return table
    file = None if table is None else Path(table)
    if file is not None and file.exists():
        return LatencyTable.read(file, base.groups)
    found = measure_table(base, multiple, on_layer)
    if file is not None:
        with suppress(OSError):  # a folder that cannot be written to: measured again next time
            found.write(file)
    return found


def judging_of(images: int) -> int:
    """How many of so many images are held out to judge tuning."""
    return min(-(-images // 4), MOST_HELD)


def tuned_where_it_helps(
    pruned: Pruned, images: Images, held: Images, steps: int, seed: int, on_step: OnStep | None
) -> tuple[Pruned, dict[str, float]]:
    """A submodel that learnt from `images`, or the given one where images that it did not see do not say that it is
    nearer to the full model.

    A third of `held` chooses among the steps; the others judge, and are what the figures are of. Raises DataError for
    too few of them.
    """
    if len(held) < LEAST_HELD:
        raise DataError(
            f"{len(held)} images are held out to judge tuning, at least {LEAST_HELD} are needed: give more images of "
            "the classes, or do not tune"
        )
    choosing = len(held) // CHOOSING
    found = tune(pruned, images, held[:choosing], steps=steps, seed=seed, on_step=on_step)
    judged = judge(pruned, found.submodel, held[choosing:])
    return found.submodel if judged.helped else pruned, {
        "agreement_before_tuning": round(judged.before, 4),
        "agreement_after_tuning": round(judged.after, 4),
        "tuning_kept": judged.helped,
        "tuning_steps": found.steps,
        "tuning_images": len(images),
        "judging_images": len(held) - choosing,
    }


def within_tolerance(
    selection: PreparedStrategy, budget: Budget, tolerance: float, images: Images
) -> tuple[Pruned, dict[str, float]]:
    """The smallest submodel that differs on at most this share of `images`. Raises PlanError where none does."""
    found = smallest_within(selection, budget, images, tolerance)
    if found.disagreement > tolerance:
        raise PlanError(
            f"tolerance is {tolerance}, the largest submodel within the budgets disagrees on "
            f"{found.disagreement:.4f} of {len(images)} images: raise the budgets or the tolerance"
        )
    return found.submodel, {"disagreement": found.disagreement, "verifying_images": len(images)}
