"""Estimate a phone's owner: the own classes, how often each is met, the nearest preference cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Usage
from fedcaptor.common.distances import class_posterior, normalise
from fedcaptor.common.softmax import softmax

_STEPS = 60
_FLOOR = 0.05  # images spread over all classes: one that neither owner nor cluster met yet can still be answered


@dataclass(frozen=True, eq=False)
class Owner:
    """Hold a phone's estimate of its owner.

    `usage` [C]: probability of each class for the next image. `classes` [k]: the own ones, sorted. `cluster`: the
    nearest centroid, -1 without any.
    """

    usage: Floats
    classes: Indices
    cluster: int

    @classmethod
    def of(cls, likelihoods: Floats, memory: Floats, centroids: npt.NDArray[np.floating], settings: Usage) -> Owner:
        """Estimate the owner by Bayes' rule from what the fleet uses and what the phone saw.

        The prior is a Dirichlet distribution around the centroids, as if `settings.prior` images of them had been seen:
        an owner of few images is treated like the cluster, one of many like herself. Expectation maximisation estimates
        the usage together with the images' classes (Saerens, Latinne & Decaestecker 2002), with the prior.

        Args:
            likelihoods: Of this round's images by class [N, C], up to a factor for each image.
            memory: Decayed counts of earlier images [C].
            centroids: Usage of each cluster [K, C].
            settings: Own classes have at least `min_share` of the usage, are `max_classes` at most; the most used one
                always is.
        """
        cluster, mean = _nearest(likelihoods, memory, centroids, settings.prior)
        prior = memory + settings.prior * mean + _FLOOR / len(memory)
        usage = normalise(prior, 0.0)
        for _ in range(_STEPS):
            usage = normalise(prior + class_posterior(likelihoods, usage).sum(0), 0.0)
        order = np.argsort(-usage, kind="stable")[: settings.max_classes]
        own = order[usage[order] >= settings.min_share]
        return cls(usage, np.sort(own if len(own) else order[:1]), cluster)

    def meets(self, likelihoods: Floats) -> npt.NDArray[np.bool_]:
        """Tell which images [N] are rather of own classes than of others, by their likelihoods [N, C]."""
        return np.asarray(class_posterior(likelihoods, self.usage)[:, self.classes].sum(1) > 0.5)


def _nearest(
    likelihoods: Floats, memory: Floats, centroids: npt.NDArray[np.floating], weight: float
) -> tuple[int, Floats]:
    """Return the likeliest cluster, -1 without any, and the centroids' mean weighted by how likely each cluster is.

    Images of one owner resemble each other more than those of a cluster do: by a Dirichlet distribution of the
    concentration `weight`, n of them tell as much of the cluster as n · (1 + weight) / (n + weight) would that are
    independent.
    """
    classes = len(memory)
    if len(centroids) == 0:
        return -1, np.full(classes, 1 / classes)
    means = max(weight, 1.0) * centroids.astype(np.float64) + _FLOOR  # without a prior there is a nearest one still
    means /= means.sum(1, keepdims=True)
    seen = len(likelihoods) + float(memory.sum())
    told = np.log(likelihoods @ means.T).sum(0) + np.log(means) @ memory
    chances = softmax((told * (1 + weight) / (seen + weight))[None] if seen else np.zeros((1, len(means))))[0]
    return int(chances.argmax()), np.asarray(chances @ means)
