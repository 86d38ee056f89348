"""How the pages read rows of the pruning benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pages.rows import draw_of, paired, where
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured
from fedcaptor.common.errors import StateError

NAMES = {
    "reconstruct": "reconstruct",
    "reconstruct-agnostic": "reconstruct, all classes alike",
    "reconstruct-fisher": "reconstruct, Fisher form",
    "captor": "CAPTOR, as far as published",
    "taylor": "Taylor",
    "l1": "L1",
    "random": "random",
    "torch-pruning-taylor": "Torch-Pruning, Taylor",
    "torch-pruning-group-norm": "Torch-Pruning, group norm",
    "torch-pruning-hessian": "Torch-Pruning, Hessian",
}
OURS, AGNOSTIC = "reconstruct", "reconstruct-agnostic"
MERGING = (OURS, AGNOSTIC, "reconstruct-fisher")
TUNING = {"none": "No training", "short": "Short tuning"}

Calibration = tuple[int, float]
"""Images a class, and the concentration of a phone-like mixture of them; 0 for as many images of every class."""


def best(row: Row) -> float:
    """Return what is compared without training: our own as it is, of all others the higher of cut and recalibrated."""
    figures = [row["accuracy"]]
    if row["tune"] == "none" and row["strategy"] not in MERGING:
        figures.append(row["accuracy_recalibrated"])
    return float(max(figures))


def loss_of(row: Row) -> float:
    """Return what is lost to the full model that answers among the target classes only."""
    return float(row["accuracy_full_limited"]) - best(row)


def losses(rows: Sequence[Row], budgets: Sequence[float]) -> list[Spread | None]:
    """Return the loss at each budget; None where it was not measured."""
    return [measured(loss_of(row) for row in where(rows, macs_target=macs)) for macs in budgets]


def ahead_of(rows: Sequence[Row], rival: str, macs: float) -> Spread | None:
    """Return ours minus a rival's accuracy at a budget, over the draws that have both."""
    ours, theirs = (where(rows, strategy=name, macs_target=macs) for name in (OURS, rival))
    return paired(ours, theirs, best, draw_of)


def best_other(rows: Sequence[Row], macs: float) -> tuple[str, Spread] | None:
    """Return the strategy that ours is least ahead of, but for our own control, and by how much; of those that share
    most draws with ours, so that one lucky draw makes no best.
    """
    measured = {name: ahead for name in NAMES if name not in MERGING and (ahead := ahead_of(rows, name, macs))}
    most = max((ahead.count for ahead in measured.values()), default=0)
    rivals = [(name, ahead) for name, ahead in measured.items() if ahead.count == most]
    return min(rivals, key=lambda rival: rival[1].mean, default=None)


def calibration_of(row: Row) -> Calibration:
    return row["calibration_per_class"], row.get("mixture") or 0.0


def usual_calibration(record: Record) -> Calibration:
    """Return that of most rows: the tables are about it."""
    kinds = [calibration_of(row) for row in record.rows]
    return max(sorted(set(kinds)), key=kinds.count)


def sizes_of(record: Record) -> list[int]:
    """Return the numbers of target classes."""
    return sorted({len(row["classes"]) for row in record.rows})


def usual_rows(record: Record, size: int, **values: object) -> list[Row]:
    """Return the rows of so many target classes with the usual calibration, and these values."""
    usual = usual_calibration(record)
    return [r for r in where(record.rows, **values) if len(r["classes"]) == size and calibration_of(r) == usual]


def budgets_of(rows: Sequence[Row]) -> list[float]:
    return sorted({row["macs_target"] for row in rows}, reverse=True)


def refuse_twins(rows: Sequence[Row]) -> None:
    """Raise StateError where two files measured the same: a mean would count it twice."""
    seen = set()
    for row in rows:
        key = (*draw_of(row), row["strategy"], row["macs_target"], row["tune"], *calibration_of(row))
        if key in seen:
            raise StateError(
                f"{row['strategy']} at {row['macs_target']:g} of the MACs (tune {row['tune']}, draw {row['draw']}) has "
                "two rows in the files of one section: remove the older one"
            )
        seen.add(key)
