"""What budgets of time and tolerance need: a latency table, and a submodel whose answers are verified."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedcaptor.common.arrays import Images
from fedcaptor.common.errors import PlanError
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.base import Submodel as Pruned
from fedcaptor.common.torch_engine.latency import measure_table
from fedcaptor.common.torch_engine.strategies import PreparedStrategy
from fedcaptor.common.torch_engine.tolerance import smallest_within

OnLayer = Callable[[int, int], None]


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
