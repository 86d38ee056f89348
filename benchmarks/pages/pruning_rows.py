"""How the pages read rows of the pruning benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.charts import Line
from benchmarks.record import Record, Row
from benchmarks.tables import Spread
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


def best(row: Row) -> float:
    """What is compared without training: our own as it is, of all others the higher of cut and recalibrated."""
    figures = [row["accuracy"]]
    if row["tune"] == "none" and row["strategy"] not in MERGING:
        figures.append(row["accuracy_recalibrated"])
    return float(max(figures))


def paired(rows: Sequence[Row], first: str, second: str, macs: float) -> Spread | None:
    """`first` minus `second` over the draws that have both."""
    values = {
        name: {draw_of(r): best(r) for r in rows if r["strategy"] == name and r["macs_target"] == macs}
        for name in (first, second)
    }
    both = [draw for draw in values[first] if draw in values[second]]
    return Spread.of(values[first][d] - values[second][d] for d in both) if both else None


def best_other(rows: Sequence[Row], macs: float) -> tuple[str, Spread] | None:
    """The strategy that ours is least ahead of, but for our own control, and by how much; of those that share most
    draws with ours, so that one lucky draw makes no best.
    """
    found = {name: paired(rows, OURS, name, macs) for name in NAMES if name not in MERGING}
    measured = {name: ahead for name, ahead in found.items() if ahead is not None}
    most = max((ahead.count for ahead in measured.values()), default=0)
    rivals = [(name, ahead) for name, ahead in measured.items() if ahead.count == most]
    return min(rivals, key=lambda rival: rival[1].mean, default=None)


def loss_of(row: Row) -> float:
    return float(row["accuracy_full_limited"]) - best(row)


Calibration = tuple[int, float]
"""Images a class, and the concentration of a phone-like mixture of them; 0 for as many images of every class."""


def calibration_of(row: Row) -> Calibration:
    return row["calibration_per_class"], row.get("mixture") or 0.0


def usual_calibration(record: Record) -> Calibration:
    """That of most rows: the tables are about it."""
    kinds = [calibration_of(row) for row in record.rows]
    return max(sorted(set(kinds)), key=kinds.count)


def sizes_of(record: Record) -> list[int]:
    """Numbers of needed classes."""
    return sorted({len(row["classes"]) for row in record.rows})


def usual_rows(record: Record, size: int, tune: str) -> list[Row]:
    """Of so many needed classes with the usual calibration."""
    usual = usual_calibration(record)
    return [r for r in record.select(tune=tune) if len(r["classes"]) == size and calibration_of(r) == usual]


def header_of(budgets: Iterable[float]) -> tuple[str, ...]:
    """Of a table with a column for each budget, and one of how many draws its rows have."""
    return ("", *(f"{100 * macs:g} % MACs" for macs in budgets), "draws")


def budgets_of(rows: Sequence[Row]) -> list[float]:
    return sorted({row["macs_target"] for row in rows}, reverse=True)


def draw_of(row: Row) -> tuple[object, ...]:
    return (row["seed"], row["draw"], *row["classes"])


def refuse_twins(rows: Sequence[Row]) -> None:
    """Raises StateError where two files measured the same: a mean would count it twice."""
    seen = set()
    for row in rows:
        key = (*draw_of(row), row["strategy"], row["macs_target"], row["tune"], *calibration_of(row))
        if key in seen:
            raise StateError(
                f"{row['strategy']} at {row['macs_target']:g} of the MACs (tune {row['tune']}, draw {row['draw']}) has "
                "two rows in the files of one section: remove the older one"
            )
        seen.add(key)


def line_of(label: str, by_budget: Sequence[Spread | None], reference: bool = False) -> Line:
    """Per cent. A gap where a budget was not measured yet."""
    spreads = [Spread(math.nan, math.nan, 0) if spread is None else spread for spread in by_budget]
    means, deviations = ([round(100 * getattr(s, f), 3) for s in spreads] for f in ("mean", "deviation"))
    return Line(label, tuple(means), tuple([math.nan] * len(means) if reference else deviations), reference)
