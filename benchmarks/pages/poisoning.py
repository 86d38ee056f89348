"""What malicious clients do: a table for one sum and for each size of cohort, and a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.rows import one_each, paired, seed_of, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured
from fedcaptor.server.plausible import tolerated


def render(record: Record) -> Section:
    """Make a table for each way of adding up."""
    aggregates = []
    for name in record.distinct("aggregate"):
        rows = where(record.rows, aggregate=name)
        lines = [_line(rows, name, *attack) for attack in _attacks(rows)]
        aggregates.append({"name": name, "limit": limit(name), "lines": lines, "verdict": list(_verdict(rows, name))})
    once = one_each(record.rows, seed_of)
    return section("poisoning", record, {"poisoning": _chart(record)}, once=once, aggregates=aggregates)


def limit(name: str) -> float:
    """Return the share of malicious clients that an aggregate withstands."""
    return tolerated(int(name.rpartition(" ")[2])) if name != "sum" else 0.0


def _attacks(rows: Sequence[Row]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["attack"], row["liars"]) for row in rows))


def _line(rows: Sequence[Row], name: str, attack: str, share: float) -> dict[str, Any]:
    """Return the rows of one attack, and what accuracy they lose to the honest ones of the same seeds."""
    found = where(rows, attack=attack, liars=share)
    if not share:
        return {"name": "none", "rows": found, "cost": None}
    beyond = " (beyond)" if name != "sum" and share >= limit(name) else ""
    cost = paired(found, where(rows, attack="none"), "accuracy", seed_of)
    return {"name": f"{attack}, {100 * share:g} %{beyond}", "rows": found, "cost": cost}


def _error(rows: Sequence[Row], attack: str, share: float) -> Spread | None:
    """Return the centroids' error against no noise; None where nothing was measured."""
    return measured(row["error_exact"] for row in where(rows, attack=attack, liars=share))


def _verdict(rows: Sequence[Row], name: str) -> Iterator[str]:
    """Yield the attack that moves centroids most, within the limit and beyond it."""
    if honest := _error(rows, "none", 0.0):
        yield f"{honest.text(1, 3)} bits from no noise without an attack"
    within = [row for row in rows if 0 < row["liars"] < limit(name)]
    beyond = [row for row in rows if row["liars"] >= max(limit(name), 1e-9)]
    for word, part in (
        ("within its limit", within),
        ("beyond it" if name != "sum" else "with malicious clients", beyond),
    ):
        errors = [(error, attack) for attack in _attacks(part) if (error := _error(part, *attack))]
        if errors:
            worst, (attack, share) = max(errors, key=lambda found: found[0].mean)
            yield f"at worst {worst.text(1, 3)} {word}, {attack} by {100 * share:g} %"


def _chart(record: Record) -> Chart:
    shares = sorted(record.distinct("liars"))
    categories = tuple(f"{100 * share:g}" for share in shares)

    def line(attack: str, name: str) -> Line:
        rows = where(record.rows, aggregate=name)
        return Line.of(name, [_error(rows, attack if share else "none", share) for share in shares], 1, 4)

    def panel(attack: str) -> Panel:
        lines = tuple(line(attack, name) for name in record.distinct("aggregate"))
        return Panel(attack, "malicious clients, %", "centroid error against no noise", categories, lines)

    attacks = [attack for attack in record.distinct("attack") if attack not in ("none", "overshoot")]
    return Chart("What malicious clients do", tuple(map(panel, attacks)))
