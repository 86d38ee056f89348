"""Write and read a run's figures for monitoring: one small JSON file, replaced whole every few seconds.

The exporter reads it. It holds totals, ratios and private estimates alone: nothing in it names a phone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing
from fedcaptor.common.messages import Digest, Kind
from fedcaptor.common.statistics.domain import MOST

FILE = "snapshot.json"
MAX_BYTES = 1 << 20
CLUSTERS = 32
OTHER = "other"
BUCKETS = tuple(2.0**k for k in range(18))
"""Upper bounds of a round's seconds: doublings from one second to a day and a half."""

Status = Literal["running", "waiting", "ended", "stopped", "failed", "postponed"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""`waiting` is a run between two starts, each for some rounds; a `postponed` one was started, and cannot go on yet."""
Reason = Literal["phones", "budget"]
POSTPONED: tuple[Reason, ...] = get_args(Reason)
"""Why a run is postponed: too few phones are there, or the round would exceed the budget of the period."""
ERROR_LENGTH = 500

logger = logging.getLogger(__name__)


def _known(value: Any) -> Any:
    """Return None for a number that is not finite: a figure without a value is no reason to fail."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[Finite | None, BeforeValidator(_known)]
Epsilon = Annotated[Amount | None, BeforeValidator(_known)]
Count = Annotated[int, Field(ge=0)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Text = Annotated[str, Field(max_length=120)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """Hold a private estimate: `stddev` is the standard deviation of its noise."""

    value: Finite
    stddev: Amount


class Fleet(_Part):
    """Hold means over all phones, None while unknown. All but `download_ratio` are private estimates.

    `agreement`: the phones' own models with the full model, `cluster_agreement`: their clusters' models with it.
    `energy_ratio`: modelled, see `common/energy.py`.
    """

    phones: Figure | None = None
    macs_ratio: Figure | None = None
    parameters_ratio: Figure | None = None
    energy_ratio: Figure | None = None
    agreement_ratio: Figure | None = None
    cluster_agreement_ratio: Figure | None = None
    fallback_ratio: Figure | None = None
    personalised_ratio: Figure | None = None
    drifted_ratio: Figure | None = None
    download_ratio: Ratio = None


class Cluster(_Part):
    """Describe one cluster under a name that it keeps; `phones` is an estimate that may even be negative."""

    cluster: Annotated[str, Field(pattern=r"^([0-9]|[12][0-9]|3[01]|other)$")]
    phones: Figure
    macs_ratio: Ratio = None
    parameters_ratio: Ratio = None


class Look(_Part):
    """Describe one look of phones' photos by its number; `phones` is an estimate.

    `shipped` and `adapted`: accuracy of the base model on the server's labelled images, re-rendered in the look.
    `moved`: whether the base model's batch norms are adapted to it.
    """

    look: Annotated[int, Field(ge=0, lt=MOST)]
    phones: Figure
    shipped: Ratio
    adapted: Ratio
    moved: bool


class Tier(_Part):
    """Describe the submodels of a device tier: means over clusters, by their phones. `bytes`: of their weights."""

    tier: Annotated[str, Field(min_length=1, max_length=64)]
    macs_ratio: Amount
    parameters_ratio: Amount
    bytes: Amount


class Present(_Part):
    """Describe the phase in progress, as `server.activity.Moment`."""

    phase: Annotated[str, Field(max_length=64)] = ""
    started: Finite
    deadline: Finite | None = None
    step: Annotated[str, Field(max_length=16)] = ""
    asked: Count = 0
    replied: Count = 0
    online: Count | None = None


class RoundSeconds(_Part):
    """Hold a classic histogram of round durations: cumulative counts by upper bound in seconds, `+Inf` among them."""

    buckets: Annotated[dict[str, Count], Field(max_length=64)]
    sum: Amount
    count: Count

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self:
        """Make the histogram of `seconds`."""
        values = list(seconds)
        buckets = {f"{bound:g}": sum(value <= bound for value in values) for bound in BUCKETS}
        return cls(buckets=buckets | {"+Inf": len(values)}, sum=math.fsum(values), count=len(values))

    @property
    def cumulative(self) -> list[tuple[float, int]]:
        """Return the buckets by upper bound, lowest first."""
        return sorted((float(bound), count) for bound, count in self.buckets.items())

    @model_validator(mode="after")
    def _classic(self) -> Self:
        try:
            buckets = self.cumulative
        except ValueError as error:
            raise ValueError("bucket bounds must be numbers or +Inf") from error
        bounds, counts = [bound for bound, _ in buckets], [count for _, count in buckets]
        if not bounds or bounds[-1] != math.inf or any(map(math.isnan, bounds)) or len(set(bounds)) != len(bounds):
            raise ValueError("bucket bounds must differ and end with +Inf")
        if counts != sorted(counts) or counts[-1] != self.count:
            raise ValueError("bucket counts must be cumulative and end with count")
        return self


class Phase(_Part):
    """Add up all finished phases of one kind. `asked` and `answered` count phones, once a phase."""

    phase: Code
    count: Count
    seconds: Amount
    asked: Count = 0
    answered: Count = 0


class Messages(_Part):
    """Add up the messages of one step: what became of them, and payload bytes to (`down`) and from phones (`up`)."""

    phase: Code
    step: Code
    results: Annotated[dict[Code, Count], Field(max_length=8)]
    down: Count = 0
    up: Count = 0


class Spent(_Part):
    """Add up the private sums of one kind: how many, their zCDP ρ, and the noise in an entry of the last one."""

    sum: Code
    count: Count
    rho: Amount | None = None
    stddev: Amount | None = None


class LostSums(_Part):
    """Count the sums of one kind that came to nothing for one reason."""

    sum: Kind
    reason: Literal["early", "late", "discarded", "unopened"]
    count: Count


class Process(_Part):
    """Describe the server app's process."""

    started: Finite
    cpu_seconds: Amount
    peak_bytes: Count


class Snapshot(_Part):
    """Hold what the exporter serves.

    `heartbeat`: when the run was last seen at work, `ended`: when it was over, in unix seconds. `round`: in progress or
    the last one. `error`: what a run failed by or is postponed for. `rounds_planned`: None: without an end. `finished`:
    rounds. `needed`: fewest replies of a sum. `enrolled`: phones on the operator's register, None without one.
    `present`: None while nobody is at work. `epsilon` is None where noise is off; `epsilon_server` is that towards a
    server that deviates from the protocol; `rho_budget` is the ρ that `epsilon_budget` is worth at `delta`, None with
    local answers.
    """

    version: Literal[2] = 2
    run: Digest
    status: Status
    started: Finite
    heartbeat: Finite
    ended: Finite | None = None
    build: Annotated[dict[Code, Text], Field(max_length=8)] = Field(default_factory=dict)
    model: Annotated[dict[Code, Text], Field(max_length=8)] = Field(default_factory=dict)
    process: Process | None = None
    postponed: Reason | None = None
    error: Annotated[str, Field(max_length=ERROR_LENGTH)] = ""
    present: Present | None = None
    round: Count = 0
    rounds_planned: Count | None
    finished: Count = 0
    round_seconds: RoundSeconds = Field(default_factory=lambda: RoundSeconds.of(()))
    phases: Annotated[tuple[Phase, ...], Field(max_length=32)] = ()
    phases_finished: Count = 0
    phones: Count = 0
    needed: Count = 0
    enrolled: Count | None = None
    fleet: Fleet = Field(default_factory=Fleet)
    clusters: Annotated[tuple[Cluster, ...], Field(max_length=CLUSTERS + 1)] = ()
    tiers: Annotated[tuple[Tier, ...], Field(max_length=32)] = ()
    looks: Annotated[tuple[Look, ...], Field(max_length=MOST)] = ()
    messages: Annotated[tuple[Messages, ...], Field(max_length=128)] = ()
    refused: Annotated[dict[Code, Count], Field(max_length=32)] = Field(default_factory=dict)
    sums: Annotated[tuple[Spent, ...], Field(max_length=32)] = ()
    lost: Annotated[tuple[LostSums, ...], Field(max_length=64)] = ()
    excluded: Count = 0
    other_weights: Count = 0
    noise: bool
    epsilon: Epsilon
    epsilon_server: Epsilon = None
    epsilon_budget: Epsilon = None
    rho_budget: Epsilon = None
    delta: Annotated[float, Field(ge=0, le=1)]
    simulated: bool
    marks: Annotated[tuple[Text, ...], Field(max_length=16)] = ()

    @field_validator("clusters")
    @classmethod
    def _once(cls, clusters: tuple[Cluster, ...]) -> tuple[Cluster, ...]:
        if len({cluster.cluster for cluster in clusters}) != len(clusters):
            raise ValueError("a cluster may appear once only")
        return clusters


def write(path: Path, snapshot: Snapshot) -> None:
    """Replace the file at `path` in one step. A failure is logged: monitoring never stops a run."""
    try:
        with replacing(path, durable=True) as temporary:
            temporary.write_bytes(snapshot.model_dump_json().encode())
    except (OSError, ValueError) as error:
        logger.warning("the snapshot %s cannot be written (%s); the run goes on without it", path, error)


def read(path: Path) -> Snapshot:
    """Read the snapshot at `path`. Raises StateError when it is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StateError(
            f"the snapshot {path} cannot be read ({error.strerror}); start a run that writes it or give its directory"
        ) from error
    if len(content) > MAX_BYTES:
        raise StateError(f"the snapshot {path} is larger than {MAX_BYTES} bytes; delete it, the run writes a new one")
    try:
        return Snapshot.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StateError(
            f"the snapshot {path} is damaged ({where}: {first['msg']}); delete it, the run writes a new one"
        ) from error
