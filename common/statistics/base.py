"""What a statistic is: one object that phones and server share, from the phone's vector to the server's figure.

A vector of K blocks is zero outside the block of the phone's own cluster, so that no cohort is ever formed by cluster
and every reply has one size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.arrays import Array, Floats, Images, Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups

if TYPE_CHECKING:
    from fedcaptor.common.config import Config


class FilterScores(NamedTuple):
    """`scores` float [F, classes]: each filter's effect on each class, every (layer, class) block in unit L2 norm;
    `present` bool [classes]: the classes that the phone's images show.
    """

    scores: Array
    present: NDArray[np.bool_]


class PhoneView(Protocol):
    """What a statistic may ask of a phone in one round. Nothing of it leaves the phone except by a sum."""

    @property
    def groups(self) -> ChannelGroups:
        """The channel groups of the base model."""

    def usage(self) -> Floats:
        """Share of each class in what the owner meets, [classes]; all zeros before anything was met."""

    def filter_scores(self) -> FilterScores | None:
        """The filters' scores on the owner's images; None where the phone cannot score them."""

    def outcome(self) -> Mapping[str, float] | None:
        """Figures of the phone's own submodel, by the names in `OUTCOME`; None before the first personalisation."""

    def look(self) -> Floats | None:
        """The look [n] of the owner's photos (`common.look`); None without any."""

    def moments(self) -> Floats | None:
        """The moments of the base model's batch norms on the owner's photos (`common.domain`); None without photos."""

    def images(self) -> Images:
        """The owner's images of the round, uint8 [N, H, W, C]."""


@dataclass(frozen=True)
class Precision:
    """How precise a figure made from a sum is: it moves by `per_entry` / phones in the cohort for a change of 1 in an
    entry of the sum. A standard deviation of `target` is precise enough. `figure` says in words which figure.
    """

    figure: str
    per_entry: float
    target: float


class Statistic(ABC):
    """One kind of vector that phones add up, and what the server makes of the sum.

    A new statistic is a subclass, registered by `register`; its docstring is its documentation. `name` is its name in
    the registry; `kind` travels in messages and names the part of the privacy budget, which several statistics may
    share: then `tensors`, the names of what a request must bring, tells them apart. `clip` is the joint L2 bound of one
    phone's vector. A `rotated` vector is spread by a public rotation and rounded at random, which suits long and dense
    ones; others are truncated towards zero. Entries of a `signed` one may be negative. `first` is the number of the
    kind's first sum in a round.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    tensors: ClassVar[frozenset[str]] = frozenset()
    clip: ClassVar[float] = 1.0
    rotated: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    first: ClassVar[int] = 0

    @abstractmethod
    def share(self, config: Config) -> float | None:
        """The kind's share of the privacy budget, in [0, 1]; None: what all others leave."""

    @abstractmethod
    def sums(self, config: Config, round: int) -> int:
        """How many sums of it round `round` (from 1) has."""

    @abstractmethod
    def length(self, groups: ChannelGroups, blocks: int) -> int:
        """Entries of a vector of `blocks` blocks: clusters, or filter clusters for scores."""

    @abstractmethod
    def longest(self, groups: ChannelGroups) -> int:
        """Entries of the longest vector that a run can ask for: the budget is calibrated on it."""

    @abstractmethod
    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        """The phone's vector [length], before clipping and noise. Raises WireError on tensors that do not fit."""

    @abstractmethod
    def decode(self, total: Floats, groups: ChannelGroups) -> Any:
        """The server's figure from a decoded, noisy sum [length]."""

    @abstractmethod
    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        """What the noise of a sum does to the figure made from it: a row of `fedcaptor privacy plan`."""


def nearest(usage: Floats, centroids: Array) -> int:
    """The centroid [K, classes] at the least Euclidean distance from a usage distribution [classes]."""
    return int(np.square(centroids - usage).sum(1).argmin())


def in_block(values: Floats, block: int, blocks: int) -> Floats:
    """A vector [blocks · n] that is zero except for `values` [n] in one block."""
    vector = np.zeros((blocks, len(values)))
    vector[block] = values
    return vector.ravel()


def of_classes(name: str, tensors: Tensors, classes: int) -> Array:
    """The request's distributions over classes [K, classes]. Raises WireError if missing or of another shape."""
    rows = tensors.get(name)
    if rows is None:
        raise WireError("missing_tensor", f"the sum needs {name}")
    if rows.ndim != 2 or rows.shape[1] != classes or len(rows) == 0:
        raise WireError("wrong_shape", f"{name} are {rows.shape}, expected (K, {classes})")
    return rows
