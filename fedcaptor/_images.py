"""Images as users have them, in the form that the engine takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import ConfigError, DataError, NormalisationWarning
from fedcaptor.common.torch_engine.forward import standardise

Given = npt.NDArray[np.uint8] | torch.Tensor | Iterable[Any]
"""A uint8 array [N, H, W, C] or [N, H, W], a tensor [N, C, H, W], or batches of tensors, alone or with labels."""
PerChannel = float | Sequence[float]

SUPPOSED = 0.5  # mean and standard deviation of pixels where nobody says what they are


@dataclass(frozen=True)
class Normalisation:
    """What becomes of an image before the network sees it.

    `mean`, `std`: by channel, of pixels in [0, 1]. `pixels`: false where they are not known, since the images came
    normalised; mean is then 0, std 1, and only such images fit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: bool = True

    @classmethod
    def of(cls, mean: PerChannel | None, std: PerChannel | None, channels: int, floats: bool) -> Normalisation:
        """From what the user says, for images of so many channels that are `floats`, or else uint8."""
        if (mean is None) != (std is None):
            raise ConfigError("one of mean and std is given: give both, or none for images that are normalised already")
        if mean is None or std is None:
            if floats:
                return cls((0.0,) * channels, (1.0,) * channels, False)
            warnings.warn(
                f"mean and std are not given: pixels are normalised by {SUPPOSED} and {SUPPOSED}; "
                "pass those that the network was trained with",
                NormalisationWarning,
                stacklevel=4,
            )
            mean = std = SUPPOSED
        return cls(_by_channel(mean, channels, "mean"), _by_channel(std, channels, "std"))

    def applied(self, images: npt.NDArray[np.uint8] | torch.Tensor) -> Images:
        """Images in the engine's form: uint8 [N, H, W, C], which it normalises itself, or normalised float32 of the
        same layout. Raises DataError for images that are not of this kind.
        """
        if _is_uint8(images):
            if not self.pixels:
                raise DataError(
                    "images are uint8, the network was given normalised floats and how is not known: "
                    "normalise these too, or prune with mean and std"
                )
            return _pixels(images)
        x = _floats(images)
        if self.pixels:
            low, high = float(x.min()), float(x.max())
            if low < 0 or high > 1:
                raise DataError(
                    f"images go from {low:.3g} to {high:.3g}, must lie in [0, 1] where mean and std are given: "
                    "leave these out for images that are normalised already"
                )
            x = standardise(x, self.mean, self.std)
        return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


@dataclass(frozen=True, eq=False)
class Collected:
    """Images `x` in the engine's form, with `labels` [N] where batches had some."""

    x: Images
    labels: Indices | None
    normalisation: Normalisation

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.x.shape[3], self.x.shape[1], self.x.shape[2]


def collect(
    images: Given, most: Callable[[int | None], int], seed: int, normalisation_of: Callable[[int, bool], Normalisation]
) -> Collected:
    """All images of an array or a tensor; of batches at most so many as `most` says, of each label where they have
    some, otherwise of None.

    Batches are read to their end, whatever their order, and an even sample of them is kept (reservoir sampling).
    `normalisation_of`: called with the number of channels and whether the images are floats.
    """
    x, labels = (images, None) if isinstance(images, np.ndarray | torch.Tensor) else _sampled(images, most, seed)
    if len(x) == 0:
        raise DataError("0 images are given, at least 1 is needed: give images of the needed classes")
    uint8 = _is_uint8(x)
    channels = _pixels(x[:1]).shape[3] if uint8 else _floats(x[:1]).shape[1]
    normalisation = normalisation_of(channels, not uint8)
    return Collected(normalisation.applied(x), labels, normalisation)


def batches(images: Given) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Images and, where there are some, labels of each batch. Raises DataError for a batch of another form."""
    if not isinstance(images, Iterable):
        raise DataError(
            f"images are a {type(images).__name__}, must be a uint8 array [N, H, W, C], a tensor [N, C, H, W] or a "
            "DataLoader"
        )
    for batch in images:
        x, y = (*batch, None)[:2] if isinstance(batch, tuple | list) and batch else (batch, None)
        if not isinstance(x, torch.Tensor) or not (y is None or isinstance(y, torch.Tensor)):
            raise DataError(
                f"a batch is a {type(batch).__name__} of something else than tensors: give batches of images, or of "
                "(images, labels)"
            )
        if y is not None and (y.shape != x.shape[:1] or y.is_floating_point()):
            raise DataError(f"labels of {len(x)} images have shape {list(y.shape)}: give one whole number an image")
        yield x, y


def _sampled(
    images: Iterable[Any], most: Callable[[int | None], int], seed: int
) -> tuple[torch.Tensor, Indices | None]:
    rng = np.random.default_rng(seed)
    kept: dict[int | None, list[torch.Tensor]] = {}
    seen: dict[int | None, int] = {}
    for x, y in batches(images):
        for image, label in zip(x, [None] * len(x) if y is None else y.tolist(), strict=True):
            own, room = kept.setdefault(label, []), most(label)
            place = len(own) if len(own) < room else int(rng.integers(seen[label] + 1 if label in seen else 1))
            seen[label] = seen.get(label, 0) + 1
            if place < room:
                own[place : place + 1] = [image.detach().cpu().clone()]
    if None in kept and len(kept) > 1:
        raise DataError("some batches have labels, others have none: give labels with all or with none")
    if not any(kept.values()):
        raise DataError("the batches hold no image of the needed classes: give some")
    x = torch.stack([image for own in kept.values() for image in own])
    if None in kept:
        return x, None
    return x, np.concatenate([np.full(len(own), label, dtype=np.int64) for label, own in kept.items()])


def _is_uint8(images: npt.NDArray[Any] | torch.Tensor) -> bool:
    return images.dtype in (np.uint8, torch.uint8)


def _pixels(images: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.uint8]:
    if isinstance(images, torch.Tensor):
        _require(images.ndim == 4, images, "uint8 tensors must be [N, C, H, W]")
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
    _require(images.ndim in (3, 4), images, "uint8 arrays must be [N, H, W, C] or [N, H, W]")
    return images.reshape(*images.shape[:3], -1)


def _floats(images: npt.NDArray[Any] | torch.Tensor) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        raise DataError(
            f"images are an array of {images.dtype}, must be uint8 [N, H, W, C], or a float tensor [N, C, H, W]: "
            "torch.from_numpy makes one"
        )
    _require(images.is_floating_point() and images.ndim == 4, images, "float tensors must be [N, C, H, W]")
    return images.detach().cpu().float()


def _require(holds: bool, images: npt.NDArray[Any] | torch.Tensor, rule: str) -> None:
    if not holds:
        raise DataError(f"images are {images.dtype} {list(images.shape)}: {rule}")


def _by_channel(value: PerChannel, channels: int, name: str) -> tuple[float, ...]:
    values = (float(value),) * channels if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) != channels:
        raise ConfigError(f"{name} has {len(values)} values, the images have {channels} channels: give one for each")
    if not all(np.isfinite(values)) or (name == "std" and min(values) <= 0):
        raise ConfigError(f"{name} is {values}, must be finite{' and above 0' if name == 'std' else ''}")
    return values
