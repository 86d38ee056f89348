"""An adaptation: the kinds of photos that a fleet takes, and how the base model's batch norms are moved for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from fedcaptor.common import domain
from fedcaptor.common.arrays import Array, Floats, Images, Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.look import length, rendered
from fedcaptor.common.statistics import nearest
from fedcaptor.common.statistics.domain import looks_in

_LARGEST = 50.0  # of a look's number: those of images lie within
NAMES = ("looks", "look_source", "moments")


@dataclass(frozen=True, eq=False)
class Adaptation:
    """Hold what a server publishes of a fleet's photos, in single precision.

    Attributes:
        looks: Kinds of photos [L, n], by their look (`common.look`).
        source: Look [n] of the server's own images.
        moments: How the batch norms are moved for each look [L, m] (`common.domain`).
    """

    looks: Array
    source: Array
    moments: Array

    @classmethod
    def of(cls, tensors: Tensors, groups: ChannelGroups) -> Self | None:
        """Read what a message or a file brings, None where it has none of it. Raises WireError on what does not fit."""
        if not any(name in tensors for name in NAMES):
            return None
        if missing := [name for name in NAMES if name not in tensors]:
            raise WireError("missing_tensor", f"an adaptation needs {', '.join(missing)} too")
        looks, source, moments = looks_in(tensors, groups), tensors["look_source"], tensors["moments"]
        shapes = (length(groups.input_shape[0]),), (len(looks), domain.length(groups.tensors))
        if (source.shape, moments.shape) != shapes:
            raise WireError("wrong_shape", f"look_source and moments are {source.shape}, {moments.shape}, not {shapes}")
        for name, values, most in (("looks", looks, _LARGEST), ("moments", moments, domain.LARGEST)):
            if values.size and np.abs(values).max() > most:
                raise WireError("wrong_shape", f"{name} hold values beyond {most:g}")
        return cls(looks, source, moments)

    @property
    def tensors(self) -> dict[str, Array]:
        """Return what messages and files carry."""
        return {"looks": self.looks, "look_source": self.source, "moments": self.moments}

    def nearest(self, look: Floats) -> int:
        """Return the number of the nearest look."""
        return nearest(look, self.looks)

    def render(self, images: Images, look: int, seed: int = 0) -> Images:
        """Re-render images of the server's kind in one of the looks."""
        return rendered(images, (self.looks[look] - self.source).astype(np.float64), seed)
