"""What the filters of a network look for, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from fedcaptor._atlas_page import SEEN_IMAGES, Look, reference_images, wanted, write
from fedcaptor._images import Given, Normalisation, PerChannel, collect
from fedcaptor._progress import shown_on
from fedcaptor.common.arrays import Images
from fedcaptor.common.class_names import fitting_names
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.common.files import check_writable
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.torch_engine.base import BaseModel


def atlas(
    module: nn.Module,
    images: Given,
    *,
    out: str | Path = "atlas.html",
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    layers: Sequence[str] = (),
    filters: int = 16,
    patches: int = 4,
    steps: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write a page of what a network's filters look for: pictures, class profiles and the image parts that excite them.

    The network paints the pictures itself. Images serve for measured profiles and for the parts of them that are shown;
    with `patches=0` none of their pixels is in the page. A VGG-16 takes a few minutes.

    Args:
        module: Network from normalised images [N, C, H, W] to scores [N, classes]; stays as it is.
        images: Images of all classes: uint8 array [N, H, W, C], tensor [N, C, H, W] in [0, 1] with `mean` and `std`, or
            batches of such tensors; at most a thousand are looked at.
        out: Page to write (HTML).
        mean: Mean of each channel that the network's training subtracted, of pixels in [0, 1].
        std: Standard deviation that it divided by.
        class_names: Names in the order of the labels; numbers if left out.
        name: What the network is called; its class's name if left out.
        layers: Channel groups by name; all if left out.
        filters: Most filters of a layer, 1 to 64.
        patches: Image parts beside each picture, 0 to 8.
        steps: Steps that a picture is painted in.
        seed: Seed of all that is drawn.
        progress: Whether progress is shown on standard error: bars on a terminal, lines elsewhere.

    Returns:
        The page's path.

    Raises:
        ConfigError: A layer that the network lacks, a seed that cannot be, or a place that cannot be written.
        DataError: Images whose pixels are not known.
        ModelError: A network that cannot be traced.

    Example:
        ```python
        fedcaptor.atlas(network, images, mean=0.5, std=0.25, class_names=["shoe", "bag"], out="atlas.html")
        ```
    """
    place, look = Path(out), Look(tuple(layers), filters, patches, steps, seed)
    check_writable(place)
    found = collect(images, lambda label: SEEN_IMAGES, seed, partial(Normalisation.of, mean, std))
    norm = found.normalisation
    if not norm.pixels:
        raise DataError(
            "images are normalised floats, an atlas shows pixels: give uint8 images, or floats in [0, 1] with mean and "
            "std"
        )
    base = BaseModel.of(module, name or type(module).__name__, found.input_shape, norm.mean, norm.std)
    names = tuple(class_names or map(str, range(base.groups.classes)))
    if len(names) != base.groups.classes:
        raise ConfigError(f"class_names are {len(names)}, the network has {base.groups.classes} classes: name each")
    drawn = np.random.default_rng(seed).permutation(len(found.x))[:SEEN_IMAGES]
    pixels = _pixels_of(found.x[drawn], base)
    with shown_on(Console(stderr=True, quiet=not progress)) as on_progress:
        return write(base, pixels, "the images given", names, look, place, on_progress)


def atlas_of_files(
    model: str,
    weights: Path,
    source: str,
    out: Path,
    look: Look,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Path:
    """The page of a network in a file, from the reference part of a data source."""
    check_writable(out)
    data = load(source)
    _, height, width, channels = data.x.shape
    base = BaseModel.load(weights, model, (channels, height, width))
    wanted(base, look.layers)
    numbers = tuple(map(str, range(base.groups.classes)))
    names = fitting_names(base.groups.classes, base.class_names, data.names, data.name) or numbers
    return write(base, reference_images(data, look.seed), data.name, names, look, out, on_progress)


def _pixels_of(images: Images, base: BaseModel) -> Images:
    """uint8 again, of normalised images [N, H, W, C]."""
    if images.dtype == np.uint8:
        return images
    pixels = (images * np.array(base.std) + np.array(base.mean)) * 255
    return np.asarray(np.rint(pixels).clip(0, 255), np.uint8)
