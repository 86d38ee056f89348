"""First and second moments of each class, from which those of any class mixture follow without further images.

Moments are additive: the covariance of a mixture is that within its classes plus that between their means (the law of
total variance). They are taken once per network and class, and kept as half-precision factors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.linalg.lapack import dpstrf

from fedcaptor.common.arrays import Array, Floats, Indices
from fedcaptor.common.errors import DataError, ModelError
from fedcaptor.common.files import replacing

Key = tuple[str, str]
"""(group, consumer layer)."""

SHARE = 0.995
"""Share of a covariance's trace that its packed factor keeps."""

_TRIANGLE = -1  # in place of a rank: all entries are stored


@dataclass(frozen=True, eq=False)
class Scatter:
    """Sum up observations of C channels, additively over batches: `mean` [C], `squares` [C, C] = Σ (x - mean)²."""

    count: int
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, rows: Array) -> Scatter:
        """Sum up observations [R, C], R at least 1."""
        mean = rows.mean(0, dtype=np.float64)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def __add__(self, other: Scatter) -> Scatter:
        """Combine two samples (Chan et al. 1983, eq. 2.1)."""
        count, step = self.count + other.count, other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        return Scatter(count, self.mean + step * (other.count / count), self.squares + other.squares + between)


@dataclass(frozen=True, eq=False)
class Moments:
    """Pack mean and covariance of one class at one place of the network.

    The covariance [C, C] is scale · (F·Fᵀ + diagonal), or scale · a triangle.

    `values`: F [C, rank] and the diagonal [C], or with rank -1 the upper triangle; all in [-1, 1], so that half
    precision neither overflows nor, for channels that matter, vanishes. `mean` [C]. A class unseen has `count` 0.
    """

    count: int
    mean: npt.NDArray[np.float32]
    scale: float
    rank: int
    values: Array

    @classmethod
    def of(cls, scatter: Scatter, share: float = SHARE, dtype: npt.DTypeLike = np.float16) -> Moments:
        """Pack sums by the least rank whose factor keeps `share` of the trace, or a triangle where that is no larger.

        The diagonal is exact up to rounding. What is lost is the off-diagonal part of a positive matrix of trace at
        most (1 - share) · trace: the error's Frobenius norm is below that, rounding aside.
        """
        covariance = scatter.squares / scatter.count
        scale = float(covariance.diagonal().max(initial=0.0)) or 1.0
        covariance, channels = covariance / scale, len(covariance)
        factor = _factor(covariance, share)
        if (factor.shape[1] + 1) * channels >= channels * (channels + 1) // 2:
            values, rank = covariance[np.triu_indices(channels)], _TRIANGLE
        else:
            diagonal = np.maximum(covariance.diagonal() - np.square(factor).sum(1), 0)
            values, rank = np.concatenate([factor.ravel(), diagonal]), factor.shape[1]
        return cls(scatter.count, scatter.mean.astype(np.float32), scale, rank, values.astype(dtype))

    @classmethod
    def unseen(cls, channels: int) -> Moments:
        """Stand for a class without images."""
        return cls(0, np.zeros(channels, np.float32), 1.0, 0, np.zeros(channels, np.float16))

    @property
    def nbytes(self) -> int:
        """Count the bytes of the packed arrays."""
        return self.mean.nbytes + self.values.nbytes + 20  # count, scale, rank

    def covariance(self) -> Floats:
        """Unpack the population's covariance [C, C], divided by the count."""
        channels, values = len(self.mean), self.values.astype(np.float64)
        if self.rank == _TRIANGLE:
            upper = np.zeros((channels, channels))
            upper[np.triu_indices(channels)] = values
            return self.scale * (upper + np.triu(upper, 1).T)
        factor = values[: channels * self.rank].reshape(channels, self.rank)
        return self.scale * (factor @ factor.T + np.diag(values[channels * self.rank :]))


def _factor(covariance: Floats, share: float) -> Floats:
    """Find F [C, r] of least rank with trace(F·Fᵀ) ≥ share · trace and covariance - F·Fᵀ positive.

    Pivoted Cholesky first, which ends where a class has fewer observations than channels: then the eigenvectors of
    the small r × r matrix give the large one's.
    """
    channels, trace = len(covariance), float(np.trace(covariance))
    lost = 0.1 * (1 - share) * trace / channels  # most that a channel may lose here, so that the rest can reach `share`
    lower, pivots, rank, _ = dpstrf(covariance, tol=max(lost, 1e-12), lower=1)
    factor = np.empty((channels, rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    kept, vectors = np.linalg.eigh(factor.T @ factor)
    least = int(np.searchsorted(np.cumsum(kept[::-1]), share * trace)) + 1 if rank else 0
    return factor @ vectors[:, ::-1][:, :least]


def mixture(classes: Sequence[Moments], weights: Floats) -> Floats:
    """Compute the covariance [C, C] of a mixture of K classes: Σ wₖ(Σₖ + (mₖ - m)²).

    `weights` [K] need not sum to 1.

    Raises DataError when no class has a weight, or one that has was never seen.
    """
    used: list[int] = np.flatnonzero(weights > 0).tolist()
    if not used:
        raise DataError("0 classes have a weight, at least 1 is needed: give a usage above zero")
    unseen = next((c for c in used if classes[c].count == 0), None)
    if unseen is not None:
        raise DataError(f"class {unseen} has 0 reference images, at least 1 is needed: gather moments with some of it")
    shares = weights[used] / weights[used].sum()
    means = np.stack([classes[c].mean for c in used]).astype(np.float64)
    apart = (means - shares @ means) * np.sqrt(shares)[:, None]
    total: Floats = apart.T @ apart
    for c, part in zip(used, shares, strict=True):
        total += part * classes[c].covariance()
    return total


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Hold a network's first and second moments for each of its K classes.

    Attributes:
        digest: That of the network, checked at loading.
        images: [K], images seen of each class.
        inputs: Moments of each group's channels at a consumer's input, by class.
        gradients: Moments of the gradient of each class's own logit at a consumer's outputs, by class (`sensitivity`).
    """

    digest: str
    images: Indices
    inputs: Mapping[Key, Sequence[Moments]]
    gradients: Mapping[str, Sequence[Moments]]

    @property
    def nbytes(self) -> int:
        """Count the bytes of all moments, in memory and, names aside, on disk."""
        places = [*self.inputs.values(), *self.gradients.values()]
        return sum(moments.nbytes for classes in places for moments in classes)

    def covariance(self, group: str, layer: str, weights: Floats) -> Floats:
        """Compute the covariance [C, C] of a group's channels at a layer's input; `weights` [K] mix the classes."""
        return mixture(self.inputs[group, layer], weights)

    def sensitivity(self, layer: str, classes: Indices) -> Floats:
        """Estimate the Gauss-Newton matrix [O, O] of the logits of `classes` at the layer's outputs.

        It is summed over positions, and weighs errors of the outputs by what they change in these logits.

        With gₛ the gradient of logit s it is P·E Σₛ (gₛ - ḡ)(gₛ - ḡ)ᵀ, P positions, ḡ the mean over the target classes'
        logits. It is not additive: the pairs of logits in E ḡḡᵀ are K² matrices. But E ḡḡᵀ ⪰ E[ḡ]E[ḡ]ᵀ, and with that
        in its place only moments of each logit are left: P·Σₛ [Covₛ + (mₛ - m)(mₛ - m)ᵀ], P·|S| times an even mixture's
        covariance. On one sample of images that never underrates the loss, is above zero for a single class and exact
        where gradients do not depend on the image, as in the last layer. But each logit's gradients are taken on images
        of its own class alone, one backward pass each, not on those of the other target classes: this is an
        approximation, and may underrate.
        """
        chosen = np.unique(classes)
        parts = self.gradients[layer]
        even = mixture(parts, np.isin(np.arange(len(parts)), chosen).astype(np.float64))
        return even * len(chosen) * (parts[chosen[0]].count / self.images[chosen[0]])

    def save(self, path: Path) -> None:
        """Write the moments atomically, as safetensors: five tensors a place."""
        tensors: dict[str, Array] = {"images": self.images}
        for kind, places in (("inputs", self.inputs), ("gradients", self.gradients)):
            for number, classes in enumerate(places.values()):
                tensors |= {f"{kind}.{number}.{name}": array for name, array in _stacked(classes).items()}
        names = {"inputs": json.dumps(list(self.inputs)), "gradients": json.dumps(list(self.gradients))}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, {"digest": self.digest, **names}))

    @classmethod
    def load(cls, path: Path, digest: str) -> ClassMoments:
        """Read a file of `save`. Raises ModelError when it is damaged or of another network than `digest`."""
        try:
            with safe_open(path, framework="np") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            inputs, gradients = json.loads(metadata["inputs"]), json.loads(metadata["gradients"])
            found = cls(
                metadata["digest"],
                tensors["images"],
                {(group, layer): _unstacked(tensors, f"inputs.{n}.") for n, (group, layer) in enumerate(inputs)},
                {layer: _unstacked(tensors, f"gradients.{n}.") for n, layer in enumerate(gradients)},
            )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ModelError(f"{path} holds no class moments ({error}): gather them again") from error
        if found.digest != digest:
            raise ModelError(
                f"{path} holds moments of network {found.digest[:12]}, this one is {digest[:12]}: gather them again"
            )
        return found


def _stacked(classes: Sequence[Moments]) -> dict[str, Array]:
    """Stack the moments of all classes at one place into the tensors of a file."""
    return {
        "count": np.array([m.count for m in classes], np.int64),
        "mean": np.stack([m.mean for m in classes]),
        "scale": np.array([m.scale for m in classes], np.float64),
        "rank": np.array([m.rank for m in classes], np.int32),
        "values": np.concatenate([m.values for m in classes]),
    }


def _unstacked(tensors: Mapping[str, Array], prefix: str) -> list[Moments]:
    """Take the moments of all classes at one place out of a file's tensors; raises ValueError when sizes disagree."""
    count, mean, scale, rank, values = (tensors[prefix + name] for name in ("count", "mean", "scale", "rank", "values"))
    channels = mean.shape[1]
    sizes = np.where(rank == _TRIANGLE, channels * (channels + 1) // 2, channels * (rank.astype(np.int64) + 1))
    if sizes.sum() != len(values):
        raise ValueError(f"{len(values)} values, {sizes.sum()} expected")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    rows = zip(count, mean, scale, rank, parts, strict=True)
    return [Moments(int(n), m, float(s), int(r), part) for n, m, s, r, part in rows]
