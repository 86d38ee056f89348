"""`rounds.csv`: a row for each round with what the server knows when the round ends. No true accuracy is in it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedcaptor.common.files import replacing
from fedcaptor.common.statistics import outcome_means
from fedcaptor.server.record import RoundRecord, RunRecord
from fedcaptor.simulations.records import Round

FLEET = ("agreement_cluster", "agreement", "macs", "parameters", "escalated", "drifted")
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
    "epsilon": "ε of all sums so far, for a phone that answered each, lost ones among them; empty without noise",
    "agreement_cluster": "the cluster's model agrees with the full model: share of check images",
    "agreement": "the phone's own model agrees with the full model: share of check images",
    "macs": "MACs of the phones' models, as a ratio of the full model's",
    "parameters": "parameters of the phones' models, as a ratio of the full model's",
    "escalated": "share of check images that go on to the full model",
    "drifted": "share of phones whose habits had drifted since they last personalised, when they took up the delivery",
}
"""The columns of the file, which are the fields of `Round`, with their meanings. From `agreement_cluster` on they are
means over the fleet from a private sum, noise included; empty where the noise leaves no phone to divide by, and with
local answers, which have no such sum."""


def rounds_of(run: RunRecord) -> tuple[Round, ...]:
    """A record of each finished round; None where a figure is unknown."""
    return tuple(_round(run, done) for done in run.rounds)


def _round(run: RunRecord, done: RoundRecord) -> Round:
    phases = [phase for phase in run.phases if phase.round == done.round]
    means = outcome_means(done.fleet) or {}
    return Round(
        round=done.round,
        phases=len(phases),
        asked=sum(phase.asked for phase in phases),
        replies=sum(phase.replies for phase in phases),
        dropped=sum(phase.dropped for phase in phases),
        bytes_down=sum(phase.bytes_down for phase in phases),
        bytes_up=sum(phase.bytes_up for phase in phases),
        refused=sum(sum(phase.refused.values()) for phase in phases),
        seconds=round(sum(phase.seconds for phase in phases), 3),
        clusters=len(done.centroids),
        epsilon=done.epsilon,
        **{name: means.get(name) for name in FLEET},
    )


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
