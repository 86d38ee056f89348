"""How pages read rows: some of them, and differences between pairs that share a draw or a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.record import Row
from benchmarks.tables import Spread


def where(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows with all these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def draw_of(row: Row) -> tuple[object, ...]:
    """Return what tells the draws of a class set apart."""
    return (row["seed"], row["draw"], *row["classes"])


def one_each(rows: Iterable[Row], by: Callable[[Row], object]) -> list[Row]:
    """Return one row a draw or a seed, for what all its rows share."""
    return list({by(row): row for row in rows}.values())


def seed_of(row: Row) -> object:
    return row["seed"]


def differences(
    first: Iterable[Row], second: Iterable[Row], figure: str | Callable[[Row], float], by: Callable[[Row], object]
) -> list[float]:
    """Return a figure of `first` minus that of `second`, for each draw or seed for which both were measured."""

    def values(rows: Iterable[Row]) -> dict[object, float]:
        read = (lambda row: row[figure]) if isinstance(figure, str) else figure
        return {by(row): value for row in rows if (value := read(row)) is not None}

    left, right = values(first), values(second)
    return [left[pair] - right[pair] for pair in left if pair in right]


def paired(
    first: Sequence[Row], second: Sequence[Row], figure: str | Callable[[Row], float], by: Callable[[Row], object]
) -> Spread | None:
    """Return mean and deviation of `differences`; None where no pair was measured."""
    found = differences(first, second, figure, by)
    return Spread.of(found) if found else None
