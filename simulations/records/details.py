"""`details.json`: what the report draws, without the identity of any phone."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedcaptor.simulations.records.record import Number, Numbers, Record


class Phones(Record):
    """One entry for each phone in each list, None where it has none. `tier` is absent without device tiers."""

    accuracy_full: Numbers = ()
    accuracy_full_limited: Numbers = ()
    accuracy_submodel: Numbers = ()
    accuracy: Numbers = ()
    macs_ratio: Numbers = ()
    effective_macs_ratio: Numbers = ()
    escalated: Numbers = ()
    stored_bytes: Numbers = ()
    classes: Numbers = ()
    download_bytes: Numbers = ()
    tier: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len({len(values) for _, values in self if values}) > 1:
            raise ValueError("the lists must have one entry for each phone")
        return self


class Layer(Record):
    """What the planner decided for one channel group, and what the next cut would cost and save."""

    channels: Annotated[int, Field(ge=1)]
    group: str
    kept: Annotated[int, Field(ge=0)]
    next_loss_per_mac: Number = None
    next_loss_per_parameter: Number = None
    share_of_macs: Number = None
    share_of_parameters: Number = None
    why: str = ""


class Cluster(Record):
    """The plan of a cluster, for one device tier where there are tiers. `phones` is a private estimate."""

    cluster: int
    tier: str = ""
    phones: Number = None
    centroid: Numbers = ()
    classes: tuple[int | str, ...] = ()
    macs_ratio: Number = None
    parameters_ratio: Number = None
    disagreement: Number = None
    layers: tuple[Layer, ...] = ()

    @property
    def name(self) -> str:
        """The cluster's number and, where there are tiers, its tier."""
        return f"{self.cluster} {self.tier}".strip()


class Round(Record):
    """A row of `rounds.csv`: what the server knows when a round ends. The fleet's figures, from `agreement_cluster`
    on, are means from a private sum.
    """

    round: int
    phases: int = 0
    asked: int = 0
    replies: int = 0
    dropped: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: int = 0
    seconds: Number = None
    clusters: int | None = None
    epsilon: Number = None
    agreement_cluster: Number = None
    agreement: Number = None
    macs: Number = None
    parameters: Number = None
    escalated: Number = None
    drifted: Number = None


class Phase(Record):
    """One step of a round: its time and its messages. `refused` counts replies by reason; `messages` counts what was
    sent by "step/result", `traffic` its bytes by "step/down" and "step/up".
    """

    round: int
    phase: str
    seconds: Number = None
    asked: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: int = 0
    refused: dict[str, int] = Field(default_factory=dict)
    replies: int = 0
    messages: dict[str, int] = Field(default_factory=dict)
    traffic: dict[str, int] = Field(default_factory=dict)


class PrivateSum(Record):
    """A sum over the phones. `clip`, `noise_multiplier` and the zCDP charge `rho` are absent with local answers.

    `deviation`: of the noise in an entry of the whole cohort's sum; `quantum`: what entries are rounded to.
    """

    name: str
    length: int | None = None
    clip: Number = None
    noise_multiplier: Number = None
    rho: Number = None
    deviation: Number = None
    quantum: Number = None


class Scores(Record):
    """Out-of-set scores of all phones' test images, counted in bins between `edges`; a high score means inside."""

    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]

    @model_validator(mode="after")
    def _one_count_a_bin(self) -> Self:
        if not len(self.edges) - 1 == len(self.inside) == len(self.outside):
            raise ValueError("inside and outside must have one count for each bin")
        return self


class Details(Record):
    """The whole file."""

    class_names: tuple[str, ...] = ()
    phones: Phones = Field(default_factory=Phones)
    clusters: tuple[Cluster, ...] = ()
    rounds: tuple[Round, ...] = ()
    phases: tuple[Phase, ...] = ()
    sums: tuple[PrivateSum, ...] = ()
    scores: Scores | None = None

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        for cluster in self.clusters:
            if cluster.centroid and len(cluster.centroid) != len(self.class_names):
                raise ValueError(
                    f"cluster {cluster.cluster} has {len(cluster.centroid)} shares for {len(self.class_names)} classes"
                )
        return self

    @property
    def groups(self) -> list[str]:
        """Channel groups as the plans name them, in the order of execution."""
        return list(dict.fromkeys(layer.group for cluster in self.clusters for layer in cluster.layers))

    def name(self, label: int | str) -> str:
        """The name of a class by its number; a name stays as it is."""
        if isinstance(label, int):
            return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"
        return label
