"""The files of a finished run as frozen models: what the simulation writes is what the report reads.

Each key of a file is a field, in the file's order. `docs/outputs.md` says what the keys mean.
"""

from fedcaptor.simulations.records.details import (
    Cluster,
    Details,
    Layer,
    Phase,
    Phones,
    PrivateSum,
    Round,
    Scores,
)
from fedcaptor.simulations.records.record import Number, Numbers, Record, known, read, write, write_json
from fedcaptor.simulations.records.summary import (
    Accuracies,
    ClusterOnly,
    LookFigures,
    OutOfSet,
    Privacy,
    Provenance,
    ReferenceImages,
    RoundAccuracy,
    Spread,
    Summary,
    TierFigures,
)
from fedcaptor.simulations.records.sweep import Metric, Sweep

ATLAS, DETAILS, PHONES, REPORT = "atlas.safetensors", "details.json", "phones.csv", "report.html"
ROUNDS, STATISTICS, SUMMARY, SWEEP = "rounds.csv", "statistics.json", "summary.json", "sweep.json"

__all__ = [
    "ATLAS",
    "DETAILS",
    "PHONES",
    "REPORT",
    "ROUNDS",
    "STATISTICS",
    "SUMMARY",
    "SWEEP",
    "Accuracies",
    "Cluster",
    "ClusterOnly",
    "Details",
    "Layer",
    "LookFigures",
    "Metric",
    "Number",
    "Numbers",
    "OutOfSet",
    "Phase",
    "Phones",
    "Privacy",
    "PrivateSum",
    "Provenance",
    "Record",
    "ReferenceImages",
    "Round",
    "RoundAccuracy",
    "Scores",
    "Spread",
    "Summary",
    "Sweep",
    "TierFigures",
    "known",
    "read",
    "write",
    "write_json",
]
