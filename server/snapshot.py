"""Write and read a run's figures for monitoring: one small JSON file, replaced whole after each phase.

The exporter reads it. It holds totals, ratios and private estimates alone: nothing in it names a phone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing
from fedcaptor.common.messages import Digest, Kind

FILE = "snapshot.json"
MAX_BYTES = 1 << 20
OTHER = "other"
BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)

logger = logging.getLogger(__name__)


def _known(value: Any) -> Any:
    """Return None for a number that is not finite: a figure without a value is no reason to fail."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Ratio = Annotated[float | None, BeforeValidator(_known)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fleet(_Part):
    """Hold averages over all phones, as ratios of the full model; None while unknown."""

    macs_ratio: Ratio = None
    parameters_ratio: Ratio = None
    download_ratio: Ratio = None
    accuracy_before: Ratio = None
    accuracy_after: Ratio = None
    fallback_ratio: Ratio = None


class Cluster(_Part):
    """Describe one cluster: `phones` is a private estimate, so it may be a fraction or even negative."""

    cluster: Annotated[str, Field(pattern=r"^([0-9]|[12][0-9]|3[01]|other)$")]
    phones: Finite
    macs_ratio: Ratio = None
    parameters_ratio: Ratio = None
    download_ratio: Ratio = None


class Rounds(_Part):
    """Count rounds by how they ended."""

    finished: Count = 0
    failed: Count = 0


class RoundSeconds(_Part):
    """Hold a classic histogram of round durations: cumulative counts by upper bound in seconds, `+Inf` among them."""

    buckets: Annotated[dict[str, Count], Field(max_length=64)]
    sum: Annotated[float, Field(ge=0, allow_inf_nan=False)]
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


class LostSums(_Part):
    """Count the sums of one kind that came to nothing for one reason."""

    sum: Kind
    reason: Literal["early", "late", "discarded", "unopened"]
    count: Count


class Snapshot(_Part):
    """Hold what the exporter serves.

    `epsilon` is None where noise is off; `epsilon_server` is that towards a server that deviates from the protocol.
    `updated`: unix seconds. `status`: `waiting` between two starts of a run, each for some rounds.
    """

    version: Literal[1] = 1
    run: Digest
    status: Literal["running", "waiting", "ended", "failed"]
    updated: Finite
    round: Count
    phones: Count
    fleet: Fleet = Field(default_factory=Fleet)
    clusters: Annotated[tuple[Cluster, ...], Field(max_length=33)] = ()
    rounds: Rounds = Field(default_factory=Rounds)
    round_seconds: RoundSeconds = Field(default_factory=lambda: RoundSeconds.of(()))
    replies: Annotated[dict[Code, Count], Field(max_length=16)] = Field(default_factory=dict)
    refused: Annotated[dict[Code, Count], Field(max_length=32)] = Field(default_factory=dict)
    lost: Annotated[tuple[LostSums, ...], Field(max_length=64)] = ()
    excluded: Count = 0
    epsilon: Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(_known)]
    epsilon_server: Annotated[Annotated[float, Field(ge=0)] | None, BeforeValidator(_known)] = None
    delta: Annotated[float, Field(ge=0, le=1)]
    simulated: bool
    marks: Annotated[tuple[Annotated[str, Field(max_length=120)], ...], Field(max_length=16)] = ()

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
