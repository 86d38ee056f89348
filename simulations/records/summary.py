"""`summary.json`: the headline figures of a run."""

from __future__ import annotations

from pydantic import Field, JsonValue

from fedcaptor.simulations.records.record import Number, Record


class Spread(Record):
    """An accuracy over the phones: its mean and its 5th percentile."""

    mean: Number = None
    p5: Number = None


class Accuracies(Record):
    """Accuracy on each owner's classes: of the full model, of that limited to these classes, of what phones answer with
    escalations and, `submodel`, without any. `shipped`: of the full model before it was adapted to how photos look.
    Files of older versions lack the last two.
    """

    full: Spread
    full_limited: Spread
    personalised: Spread
    submodel: Spread = Field(default_factory=Spread)
    shipped: Spread = Field(default_factory=Spread)


class RoundAccuracy(Record):
    """Mean accuracies over the phones after a round, named as in `Accuracies`; None where they were not measured."""

    round: int
    full: Number = None
    submodel: Number = None
    personalised: Number = None


class Provenance(Record):
    """Where figures come from: `command` does the same again, `finished` is a date of ISO 8601, in UTC."""

    command: str = ""
    finished: str = ""
    version: str = ""


class ClusterOnly(Record):
    """Figures of the cluster's submodel alone, without the personal step."""

    accuracy: Spread = Field(default_factory=Spread)
    accuracy_limited: Spread = Field(default_factory=Spread)
    macs_ratio: Number = None
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    download_bytes_ratio: Number = None


class OutOfSet(Record):
    """Figures on images of classes that the owner does not usually meet."""

    auroc: Number = None
    escalated_ratio: Number = None
    accuracy: Number = None
    abstained_ratio: Number = None


class Privacy(Record):
    """The privacy that the run's sums cost. `epsilon` is None where noise is off; `epsilon_server` holds towards a
    server that deviates from the protocol. `sums` is their number; older files describe them in words.
    """

    epsilon: Number = None
    epsilon_server: Number = None
    delta: Number = None
    mode: str = ""
    sums: JsonValue = None
    delivery_leak: str = ""


class TierFigures(Record):
    """A device tier as configured, and what its phones ended with."""

    name: str
    share: Number = None
    macs: Number = None
    bytes: int = 0
    phones: int = 0
    macs_ratio: Number = None
    parameters_ratio: Number = None
    accuracy: Spread = Field(default_factory=Spread)


class LookFigures(Record):
    """A look of photos as configured, and the accuracies of its phones, named as in `Accuracies`."""

    name: str
    share: Number = None
    corruptions: tuple[str, ...] = ()
    phones: int = 0
    shipped: Number = None
    full: Number = None
    personalised: Number = None


class ReferenceImages(Record):
    """The server's images that a phone received in the last round: how many, and how they were coded (png, jpeg)."""

    images: int = 0
    coding: str = ""


class Summary(Record):
    """Figures over all phones; accuracies are over those that have test images. `tiers` is absent without tiers,
    `looks` without looks.
    """

    phones: int
    phones_scored: int | None = None
    clusters: int
    rounds: int
    seconds: Number = None
    model: str
    data: str
    seed: int
    accuracy: Accuracies
    expected_accuracy: Accuracies | None = None
    accuracy_by_round: tuple[RoundAccuracy, ...] = ()
    macs_ratio: Number
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    energy_ratio: Number = None
    download_bytes_ratio: Number = None
    storage_ratio: Number = None
    reference_images: ReferenceImages | None = None
    cluster_only: ClusterOnly | None = None
    out_of_set: OutOfSet | None = None
    privacy: Privacy | None = None
    faults: dict[str, JsonValue] | None = None
    peak_rss_bytes: Number = None
    marks: tuple[str, ...] = ()
    provenance: Provenance | None = None
    tiers: tuple[TierFigures, ...] | None = None
    looks: tuple[LookFigures, ...] | None = None
