"""`rounds.csv`: one row for each round, of what the server knows when the round ends. No true accuracy is in it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedcaptor.common.files import replacing
from fedcaptor.common.statistics import outcome_means
from fedcaptor.server.record import RoundRecord, RunRecord

FILE = "rounds.csv"

FLEET = ("agreement_cluster", "agreement", "macs", "parameters", "escalated")
COLUMNS = {
    "round": "number of the round, from 1",
    "phases": "phases that the round had",
    "asked": "phones asked, summed over the phases",
    "replies": "valid replies",
    "dropped": "requests without a reply, those sent again included",
    "refused": "replies that were refused",
    "bytes_down": "payload bytes from the server to the phones",
    "bytes_up": "payload bytes from the phones to the server",
    "seconds": "time of all phases",
    "clusters": "published preference clusters",
    "epsilon": "ε of all sums so far, for a phone that answered each; empty without noise",
    "agreement_cluster": "the cluster's model agrees with the full model: share of check images",
    "agreement": "the phone's own model agrees with the full model: share of check images",
    "macs": "MACs of the phones' models, as a ratio of the full model's",
    "parameters": "parameters of the phones' models, as a ratio of the full model's",
    "escalated": "share of check images that go on to the full model",
}
"""Meaning by column. From `agreement_cluster` on they are means over the fleet from a private sum, noise included;
empty where the noise leaves no phone to divide by, and with local answers, which have no such sum."""


def rows_of(record: RunRecord) -> list[dict[str, Any]]:
    """One row for each finished round, keys as in `COLUMNS`; None where a figure is unknown."""
    return [_row(record, done) for done in record.rounds]


def _row(record: RunRecord, done: RoundRecord) -> dict[str, Any]:
    phases = [phase for phase in record.phases if phase.round == done.round]
    means = outcome_means(done.fleet) or {}
    counted = ("asked", "replies", "dropped", "bytes_down", "bytes_up")
    return {
        "round": done.round,
        "phases": len(phases),
        **{name: sum(int(getattr(phase, name)) for phase in phases) for name in counted},
        "refused": sum(sum(phase.refused.values()) for phase in phases),
        "seconds": round(sum(phase.seconds for phase in phases), 3),
        "clusters": len(done.centroids),
        "epsilon": done.epsilon,
        **{name: means.get(name) for name in FLEET},
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = COLUMNS) -> None:
    """A CSV file with a header, replaced whole; an unknown figure is an empty field."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows as written, every field as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
