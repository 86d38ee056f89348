"""Estimate a phone's owner: the own classes, how often each is met, the nearest preference cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Usage
from fedcaptor.common.distances import class_shares, normalise
from fedcaptor.common.statistics import nearest

_SMOOTHING = 0.01  # share added to each own class, so that one that was hardly met yet can still be answered


@dataclass(frozen=True, eq=False)
class Owner:
    """Hold a phone's estimate of its owner.

    `counts` [C]: uses of each class. `usage` [C]: class usage with the cluster's centroid as prior. `classes` [k]: the
    own ones. `cluster`: the nearest centroid, -1 without any.
    """

    counts: Floats
    usage: Floats
    classes: Indices
    cluster: int

    @classmethod
    def of(cls, counts: Floats, centroids: npt.NDArray[np.floating], settings: Usage) -> Owner:
        """Estimate the owner from uses [C] of each class and the `centroids` [K, C].

        Own classes have at least `settings.min_share` of the usage; the most used one is always own.
        """
        usage = normalise(counts, 0.0)
        cluster = nearest(usage, centroids) if len(centroids) else -1
        if cluster >= 0:
            usage = normalise(counts + settings.prior * centroids[cluster], 0.0)
        order = np.argsort(-usage, kind="stable")[: settings.max_classes]
        own = order[usage[order] >= settings.min_share]
        return cls(counts, usage, np.sort(own if len(own) else order[:1]), cluster)

    def prior(self, inside: float) -> Floats:
        """Return how likely each class is [C] for an image that the owner meets.

        Own classes share the probability `inside` in proportion to their usage; all others share the rest evenly.

        Its logarithm added to a classifier's logits is Bayes' rule for the owner's habits (Saerens et al. 2002).
        """
        classes = len(self.usage)
        prior = np.full(classes, (1 - inside) / max(classes - len(self.classes), 1))
        shares = self.usage[self.classes] + _SMOOTHING
        prior[self.classes] = inside * shares / shares.sum()
        return np.asarray(prior)

    def meets(self, probabilities: Floats) -> npt.NDArray[np.bool_]:
        """Tell which images [N] are rather of own classes than of others, by the full model's probabilities [N, C]."""
        return np.asarray(class_shares(probabilities, self.counts)[:, self.classes].sum(1) > 0.5)
