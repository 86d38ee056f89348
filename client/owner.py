"""Estimate a phone's owner: the own classes, how often each is met, the nearest preference cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Usage
from fedcaptor.common.distances import class_posterior
from fedcaptor.common.softmax import softmax
from fedcaptor.common.topics import mixture

_STEPS = 60
_FOLDS = 5
_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # of a mixture of topics, in images
_FLOOR = 0.05  # images spread over all classes: one that neither owner nor cluster met yet can still be answered


@dataclass(frozen=True, eq=False)
class Owner:
    """Hold a phone's estimate of its owner.

    `usage` [C]: probability of each class for the next image. `classes` [k]: the own ones, sorted. `cluster`: the
    nearest centroid, or the topic that the owner has most of; -1 without any.
    """

    usage: Floats
    classes: Indices
    cluster: int

    @classmethod
    def of(
        cls,
        likelihoods: Floats,
        memory: Floats,
        centroids: npt.NDArray[np.floating],
        settings: Usage,
        mixed: bool = False,
    ) -> Owner:
        """Estimate the owner by Bayes' rule from what the fleet uses and what the phone saw.

        The prior is a Dirichlet distribution around the centroids, as if so many images of them had been seen: an owner
        of few images is treated like the cluster, one of many like herself. Expectation maximisation estimates the
        usage together with the images' classes (Saerens, Latinne & Decaestecker 2002), with the prior.

        Args:
            likelihoods: Of this round's images by class [N, C], up to a factor for each image.
            memory: Decayed counts of earlier images [C].
            centroids: Usage of each cluster [K, C].
            settings: The prior is worth `prior` images. Own classes have at least `min_share` of the usage, are
                `max_classes` at most, both by the number of classes where they are 0; the most used one always is.
            mixed: The centroids are topics. The prior is then made of the owner's own mixture of them.
        """
        seen = _Seen(likelihoods, memory)
        if mixed and len(centroids):
            cluster, usage = _mixed(seen, centroids.astype(np.float64), settings.prior)
        else:
            cluster, mean = _nearest(likelihoods, memory, centroids, settings.prior)
            usage = seen.usages(settings.prior * mean[None])[0]
        count = len(usage)
        order = np.argsort(-usage, kind="stable")[: settings.max_classes or max(8, count * 4 // 5)]
        own = order[usage[order] >= (settings.min_share or min(0.03, 0.3 / count))]
        return cls(usage, np.sort(own if len(own) else order[:1]), cluster)

    def meets(self, likelihoods: Floats) -> npt.NDArray[np.bool_]:
        """Tell which images [N] are rather of own classes than of others, by their likelihoods [N, C]."""
        return np.asarray(class_posterior(likelihoods, self.usage)[:, self.classes].sum(1) > 0.5)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Hold what a phone saw: `likelihoods` [N, C] of this round's images, and `memory` [C] of earlier ones."""

    likelihoods: Floats
    memory: Floats

    def usages(self, priors: Floats) -> Floats:
        """Estimate the usage [M, C] with each prior of M [M, C], which is worth so many images of each class."""
        fixed = (self.memory + priors + _FLOOR / len(self.memory)).T
        usage = fixed / fixed.sum(0)
        for _ in range(_STEPS):
            usage = fixed + usage * (self.likelihoods.T @ (1 / (self.likelihoods @ usage)))
            usage /= usage.sum(0)
        return np.asarray(usage.T)

    def without(self, images: Indices) -> _Seen:
        """Leave some of the images out."""
        return _Seen(np.delete(self.likelihoods, images, axis=0), self.memory)


def _mixed(seen: _Seen, topics: Floats, alone: float) -> tuple[int, Floats]:
    """Return the topic that the owner has most of, and the usage [C] by a mixture of topics.

    How far topics can be trusted depends on the fleet's size, its noise and the owner. So usage is estimated with
    priors of several weights, and with one of `alone` images spread over all classes. The mean of these estimates
    counts, each in proportion to how likely the phone's images are by estimates from its other images.
    """
    images = len(seen.likelihoods)
    told = np.zeros(len(_WEIGHTS) + 1)
    for part in np.array_split(np.arange(images), min(_FOLDS, images)) if images > 1 else ():
        rest = seen.without(part)
        usages = rest.usages(_priors(rest, topics, alone))
        told += np.log(seen.likelihoods[part] @ usages.T).sum(0)
    trust = softmax(told[None])[0]
    return int(mixture(topics, seen.memory, seen.likelihoods).argmax()), trust @ seen.usages(
        _priors(seen, topics, alone)
    )


def _priors(seen: _Seen, topics: Floats, alone: float) -> Floats:
    """Return priors [M, C]: one without topics, then the owner's mixture of topics, ever heavier."""
    mean = mixture(topics, seen.memory, seen.likelihoods) @ topics
    return np.concatenate([np.full((1, len(mean)), alone / len(mean)), np.outer(_WEIGHTS, mean)])


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
