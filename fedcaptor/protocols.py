"""What users may bring of their own: a protocol for each part.

A part is named in the configuration, or in an option of the command line, as `package.module:object`; the calls of
`fedcaptor` take the object as well. Names are imported with the current directory on the path, from one's own
configuration alone: no message and no file of weights ever names one. `docs/examples/own-parts.md` has an example of
each.

| part | where it is named | protocol |
|---|---|---|
| a network | `model.name`, `fedcaptor prune MODEL` | `ModelFactory` |
| images | `data.source`, `--data` | `DataSource` |
| habits of a population | `population.law` | `PopulationLaw` |
| a pruning strategy | `fedcaptor prune --strategy` | `PruningStrategy` |
| a clustering of phones | `clusters.method` | `PhoneClustering` |
| an out-of-set score | `fallback.score` | `OutOfSetScore` |
| a statistic | `register_statistic`, in every process | `Statistic` |
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from fedcaptor.common.config import Population
    from fedcaptor.common.data.source import Dataset
    from fedcaptor.common.statistics import PhoneView, Precision, Statistic
    from fedcaptor.common.statistics import register as register_statistic
    from fedcaptor.common.statistics import unregister as unregister_statistic
    from fedcaptor.common.torch_engine.strategies import PreparedStrategy, Task

    Floats = NDArray[np.float64]

__all__ = [
    "DataSource",
    "ModelFactory",
    "OutOfSetScore",
    "PhoneClustering",
    "PhoneView",
    "PopulationLaw",
    "Precision",
    "PruningStrategy",
    "Statistic",
    "register_statistic",
    "unregister_statistic",
]


def __getattr__(name: str) -> Any:
    """What a statistic is made of, imported when it is first used (PEP 562): it needs numpy."""
    if name not in ("PhoneView", "Precision", "Statistic", "register_statistic", "unregister_statistic"):
        raise AttributeError(f"module 'fedcaptor.protocols' has no attribute {name!r}")
    return getattr(import_module("fedcaptor.common.statistics"), name.removesuffix("_statistic"))


class ModelFactory(Protocol):
    """Makes a network with any weights; a trained one's are loaded into it.

    Channels must be cut alike wherever they are read: convolutions (plain, depthwise or grouped), linear layers, batch
    norms and activations can be, each layer used once and the classes made by the last linear layer or convolution.
    Channels that something else computes over stay whole. `fedcaptor.inspect` says which, and why.
    """

    def __call__(self, classes: int, input_shape: tuple[int, int, int], /) -> nn.Module:
        """The network.

        Args:
            classes: Number of its outputs.
            input_shape: (C, H, W) of an image.

        Returns:
            A module from normalised float images [N, C, H, W] to scores [N, classes].
        """


class DataSource(Protocol):
    """Gives images with labels, all of one size, all at once."""

    def __call__(self) -> Dataset:
        """The images.

        Returns:
            `fedcaptor.Dataset`: `x` uint8 [N, H, W, C] with C 1 or 3, `y` int64 [N], one name for each class; `owner`
            and `split` where these are known. It is checked as a file would be.
        """


class PopulationLaw(Protocol):
    """Draws how often each simulated owner meets each class; images are then drawn by these shares."""

    def __call__(self, settings: Population, classes: int, rounds: int, seed: int, /) -> Floats:
        """Shares of the classes.

        Args:
            settings: The section `[population]`: `phones` and all that the law reads of it.
            classes: Number of classes in the data.
            rounds: Rounds of the run; habits may change between two.
            seed: Seed of the run. The same seed must give the same shares, since a stopped run is resumed.

        Returns:
            [rounds, phones, classes], not negative, each row summing to 1. Classes above 0 are the owner's own.
        """


class PruningStrategy(Protocol):
    """Decides which channels go first, and what becomes of those that stay."""

    def __call__(self, task: Task, /) -> PreparedStrategy:
        """What the network shows of a task, for any budget.

        Args:
            task: `task.base.module` and `task.base.groups` are the network and its channel groups; `task.images` are of
                the target `task.classes`, `task.all_images` of all classes where there are some.

        Returns:
            `fedcaptor.PreparedStrategy.by_scores(task, scores)` where a score of each channel is enough; otherwise a
            `fedcaptor.PreparedStrategy` with a pruning curve of each group.
        """


class PhoneClustering(Protocol):
    """Finds groups of phones that use the same classes, from noisy sums over all phones.

    It sees sums alone. Whether a cluster has phones enough to be published is decided afterwards, by a rule that cannot
    be exchanged.
    """

    def first(self, cooccurrence: Floats, k: int, seed: int, /) -> Floats:
        """Centroids to begin with.

        Args:
            cooccurrence: Noisy sum over phones of u·uᵀ [classes, classes], where u [classes] is a phone's usage. Noise
                may make entries negative.
            k: Most centroids.
            seed: Seed of the run.

        Returns:
            [≤ k, classes], not negative, each row summing to 1.
        """

    def next(self, usage: Floats, before: Floats, deviation: float, /) -> tuple[Floats, Floats]:
        """Centroids after phones have chosen the nearest of those `before`; not called with local answers.

        Args:
            usage: Noisy sum [K, classes] of the usage of the phones that chose each centroid. A phone's usage sums to
                one, so a row's sum counts its phones.
            before: The centroids [K, classes] that phones chose from.
            deviation: Standard deviation of the noise in each entry of `usage`.

        Returns:
            Centroids [K, classes], not negative, each row summing to 1, and the estimated number of phones of each [K].
        """


class OutOfSetScore(Protocol):
    """Says how sure a submodel is that an image is of its classes; below a threshold the image goes to a larger model.

    It runs on phones, which read its name from their own configuration.
    """

    def __call__(self, scores: NDArray[Any], others: NDArray[Any] | None, /) -> Floats:
        """The score of each image.

        Args:
            scores: Logits [N, k] of the classes that the submodel answers with, log priors added.
            others: Logits [N, m] of other classes where the submodel has kept some, or None.

        Returns:
            [N], finite, higher for an image of the submodel's classes.
        """
