"""What the delivered submodels are worth to some phones of a fleet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.batches import in_batches
from benchmarks.fleet_server import Served
from benchmarks.fleet_sums import Fleet
from benchmarks.progress import OnPhase
from fedcaptor.client.owner import Owner
from fedcaptor.common.config import Config
from fedcaptor.common.distances import js_divergence
from fedcaptor.common.statistics import nearest as nearest_to
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.simulations.oracle import Oracle
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.runner import World, build_world


@dataclass(eq=False)
class Evaluation:
    """Tests what the first `phones` of the population get, on test images that the simulator alone reads: the same
    phones and images whatever the server did. Accuracies are on images of the owner's true classes, the mean over
    phones that have some.
    """

    world: World
    fleet: Fleet
    phones: int

    @classmethod
    def of(cls, config: Config, folder: Path, phones: int, on_phase: OnPhase) -> Evaluation:
        """Draw the population of `config`'s seed in a folder of its own, all its phones as a fleet."""
        on_phase("population", 0, 1)
        world = build_world(config, folder / str(config.run.seed))
        return cls(world, Fleet.of(world.directory, config, world.base, on_phase), phones)

    def __post_init__(self) -> None:
        oracle = self.world.directory / "oracle"
        test = np.load(oracle / "test.npy", mmap_mode="r")[0, : self.phones]
        used = np.unique(test[test >= 0])
        self._images: npt.NDArray[np.uint8] = np.load(oracle / "images.npy", mmap_mode="r")[used]
        self._labels: npt.NDArray[Any] = np.load(oracle / "labels.npy")[used]
        self._own = np.load(oracle / "shares.npy", mmap_mode="r")[0, : self.phones] > 0
        self._test = np.where(test >= 0, np.searchsorted(used, test), -1)

    @cached_property
    def of_full(self) -> dict[str, float]:
        """Test the full model as it is, and limited to the owner's true classes."""
        logits = in_batches(self.world.base, self._images)
        limited = [np.where(own, logits[self._inside(phone)], -np.inf) for phone, own in enumerate(self._own)]
        return {
            "accuracy_full": self._accuracy([logits[self._inside(p)].argmax(1) for p in range(self.phones)]),
            "accuracy_full_limited": self._accuracy([scores.argmax(1) for scores in limited]),
        }

    def of_clusters(self, served: Served) -> dict[str, float]:
        """Test the submodel of the cluster that each phone chooses: by itself, and limited to what the phone takes for
        its own classes; `served` is the share of the owner's images whose class it can name at all.
        """
        centroids, settings = served.round.centroids, self.world.config.usage
        none = np.zeros((0, self.world.base.groups.classes))
        owners = [Owner.of(none, counts, centroids, settings) for counts in self.fleet.counts[: self.phones]]
        logits = [self._all_classes(model) for model in served.models]
        seen = [logits[owner.cluster][self._inside(phone)] for phone, owner in enumerate(owners)]
        named = [np.isin(self._truth(p), served.models[o.cluster].classes) for p, o in enumerate(owners)]
        limited = [_limited(scores, owner.classes) for scores, owner in zip(seen, owners, strict=True)]
        return {
            "accuracy": self._accuracy([scores.argmax(1) for scores in seen]),
            "accuracy_limited": self._accuracy([scores.argmax(1) for scores in limited]),
            "macs_ratio": float(np.mean([served.models[owner.cluster].macs_ratio for owner in owners])),
            "served": float(np.mean([part.mean() for part in named if len(part)])),
        }

    def of_phones(self, served: Served, numbers: Sequence[int], on_phase: OnPhase) -> dict[str, float]:
        """Test what these phones end with when they personalise by themselves; images that they are unsure of go to the
        full model, for which `macs_effective` accounts.
        """
        world = self.world
        shutil.rmtree(world.directory / "phones", ignore_errors=True)
        oracle, figures = Oracle(world.directory, world.config, world.base, served.models), []
        for done, number in enumerate(numbers):
            on_phase("personal step", done, len(numbers))
            simulated_phone(world.directory, world.config, world.base, number).deliver(*served.deliveries[-1])
            figures.append(oracle.phone(number, 1))
        return {
            "accuracy_personal": float(np.nanmean([f.accuracy for f in figures])),
            "macs_personal": float(np.mean([f.macs_ratio for f in figures])),
            "macs_effective": float(np.mean([f.effective_macs_ratio for f in figures])),
        }

    def _inside(self, phone: int) -> npt.NDArray[Any]:
        """Return numbers of the phone's test images that are of its owner's true classes."""
        row = self._test[phone]
        row = row[row >= 0]
        return np.asarray(row[self._own[phone][self._labels[row]]])

    def _truth(self, phone: int) -> npt.NDArray[Any]:
        return np.asarray(self._labels[self._inside(phone)])

    def _accuracy(self, answers: Sequence[npt.NDArray[Any]]) -> float:
        right = [(given == self._truth(phone)).mean() for phone, given in enumerate(answers) if len(given)]
        return float(np.mean(right))

    def _all_classes(self, model: Submodel) -> npt.NDArray[Any]:
        """Return logits [images, C] of a submodel, -inf for the classes that it does not serve."""
        logits = np.full((len(self._images), self.world.base.groups.classes), -np.inf)
        logits[:, model.classes] = in_batches(model, self._images)
        return logits


def _limited(scores: npt.NDArray[Any], own: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return logits of own classes alone, of all where none of these has one."""
    mask = np.isin(np.arange(scores.shape[1]), own)
    known = mask & np.isfinite(scores).all(0)
    return np.where(known | ~known.any(), scores, -np.inf)


def centroid_error(fleet: Fleet, phones: int, centroids: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """Return the Jensen-Shannon divergence (bits) between the centroid that a phone finds nearest and the one that it
    would have found among `exact` ones, mean over the first `phones`.
    """
    apart = np.array([[js_divergence(a, b) for b in _sum_to_one(exact)] for a in _sum_to_one(centroids)])
    nearest = [(nearest_to(u, centroids), nearest_to(u, exact)) for u in fleet.usage[:phones]]
    return float(np.mean([apart[pair] for pair in nearest]))


def _sum_to_one(centroids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(centroids / centroids.sum(1, keepdims=True))
