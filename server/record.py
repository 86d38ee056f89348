"""Record what a run did, for the snapshot, the report, and others that read a run's progress or its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedcaptor.common.arrays import Array, Floats
from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.server.cluster_submodels import ClusterSubmodels


@dataclass(frozen=True)
class PhaseRecord:
    """Record one phase: its duration, and what became of its messages.

    `bytes_down` and `bytes_up` are payload bytes to and from the phones; `refused` counts refused replies by reason;
    `messages` and `traffic` as in `Tally`.
    """

    round: int
    phase: str
    seconds: float
    asked: int = 0
    replies: int = 0
    dropped: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    messages: Mapping[str, int] = field(default_factory=dict)
    traffic: Mapping[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return the phase's name without its number in the round."""
        return self.phase.rsplit("-", 1)[0]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as `details.json` has it."""
        return asdict(self)


@dataclass(frozen=True)
class Delivered:
    """Record what one phone fetched in a round.

    `bytes`: payload, on average; `images`: reference images in it, `coding`: how they were coded, "" without any.
    `other_weights`: nodes that refused it, or an earlier one since which they did not answer, as their base model has
    other weights.
    """

    bytes: float
    images: int = 0
    coding: str = ""
    other_weights: frozenset[int] = frozenset()


@dataclass(frozen=True)
class LookRecord:
    """Record one look of phones' photos that was published.

    `phones`: private estimate of how many have it. `shipped` and `adapted`: share of held, labelled images, re-rendered
    in the look, that the base model answers rightly as shipped and as published for it. `moved`: whether these images
    bore out that its batch norms are moved.
    """

    phones: float
    shipped: float
    adapted: float
    moved: bool


@dataclass(frozen=True, eq=False)
class RoundRecord:
    """Record what a round ended with.

    `centroids` [K, classes]; `counts` [K]: estimated phones of each cluster; `fleet` [K, figures]: noisy sums of
    outcomes, None where answers are local; `delivered`: what one phone fetched; `epsilon`:
    ε of all sums so far, those among them that were lost after their vectors had left, or with
    `privacy.rounds_per_period` the largest of 90 days; None without noise.
    """

    round: int
    centroids: Floats
    counts: Floats
    submodels: ClusterSubmodels
    fleet: Floats | None
    delivered: Delivered
    epsilon: float | None


@dataclass(frozen=True, eq=False)
class RunRecord:
    """Record a run so far, or to its end.

    `phones`: how many its last round has. `sums`: what is told of each sum. `epsilon`: as in a `RoundRecord`, for
    a phone that answered all sums; `epsilon_server` is that towards a server that deviates; None without noise.
    `refused`: refused replies by reason. `lost`: sums that came to nothing, by phase and reason.
    `excluded`: phones that a sum was lost by, and which are asked for none any more. `atlas`: pictures and profiles of
    filters. `statistics`: decoded sums of statistics that are not FedCAPTOR's own, by name. `looks`: those of phones'
    photos, from the first round on; none where they are not asked for.
    """

    config: Config
    groups: ChannelGroups
    phones: int
    rounds: tuple[RoundRecord, ...]
    phases: tuple[PhaseRecord, ...]
    sums: tuple[Mapping[str, Any], ...]
    epsilon: float | None
    epsilon_server: float | None
    refused: Mapping[str, int]
    lost: Mapping[tuple[str, str], int]
    excluded: int
    atlas: Mapping[str, Array]
    statistics: Mapping[str, Any]
    looks: tuple[LookRecord, ...] = ()

    @property
    def over(self) -> bool:
        """Tell whether the run's last round has ended; a run of `run.rounds` 0 has none."""
        return 0 < self.config.run.rounds <= len(self.rounds)

    @property
    def last(self) -> RoundRecord:
        """Return the newest finished round. Raises IndexError before the first is finished."""
        return self.rounds[-1]
