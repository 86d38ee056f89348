"""Pruning a network in memory in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedcaptor._evidence import CALIBRATION, Evidence
from fedcaptor._images import Given, PerChannel
from fedcaptor._submodel import Submodel
from fedcaptor._verification import HELD
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.torch_engine.export import WEIGHTS
from fedcaptor.protocols import PruningStrategy


def prune(
    module: nn.Module,
    images: Given,
    classes: Sequence[int | str] | npt.NDArray[np.integer],
    *,
    class_names: Sequence[str] | None = None,
    macs: float | None = None,
    parameters: float | None = None,
    bytes: int | None = None,
    latency: float | None = None,
    tolerance: float | None = None,
    mean: PerChannel | None = None,
    std: PerChannel | None = None,
    strategy: str | PruningStrategy = "reconstruct",
    tune: int = 0,
    recalibrate: bool = False,
    multiple: int = 8,
    calibration: int = CALIBRATION,
    validation_images: Given | None = None,
    latency_table: LatencyTable | str | Path | None = None,
    formats: Sequence[str] = (WEIGHTS,),
    half: bool = False,
    int8: bool = False,
    name: str | None = None,
    seed: int = 0,
) -> Submodel:
    """A physically smaller network for some of a network's classes, without training unless `tune` asks for it.

    `fedcaptor.Evidence` explains what describes the network and its images, `fedcaptor.Evidence.submodel` the budgets,
    and both the errors; for several budgets use these, the images are then observed once. With `tolerance` or `tune`,
    and without `validation_images`, a quarter of the images at least is held out.

    Args:
        module: Network from normalised images [N, C, H, W] to scores [N, classes]; stays as it is.
        images: Images of the target classes: uint8 array [N, H, W, C], tensor [N, C, H, W], or a `DataLoader`.
        classes: Labels that the submodel is to know, or names of `class_names`.
        class_names: Names of all of the network's classes, by label.
        macs: MACs to keep, as a ratio of the full network's.
        parameters: Stored values to keep, as a ratio.
        bytes: Most bytes of each file of `formats`.
        latency: Seconds of one image to keep, as a ratio.
        tolerance: Most disagreement with the full network on images held out; the smallest such submodel is taken.
        mean: Of pixels in [0, 1], by channel; floats without it are taken for normalised.
        std: As `mean`.
        strategy: A name, or an object as in `fedcaptor.protocols.PruningStrategy`.
        tune: Training steps.
        recalibrate: Measure batch-norm statistics anew.
        multiple: Kept channels are multiples of this.
        calibration: Most images that are observed of each class.
        validation_images: Images to hold out instead of some of `images`.
        latency_table: Seconds by layer, or their file.
        formats: Endings of the files that `bytes` is for.
        half: Whether programs among them are in half precision.
        int8: Whether they are in eight bits.
        name: What the network is called; its class's name if left out.
        seed: Seed of all that is drawn.

    Returns:
        The submodel, with the network as `module`, its labels as `classes`, `predict`, `save` and ratios.

    Example:
        ```python
        small = fedcaptor.prune(network, images, classes=[3, 5], macs=0.3, mean=0.5, std=0.25)
        print(small, small.predict(images[:5]))
        small.save("small.onnx")
        ```
    """
    hold_out = HELD if (tolerance is not None or tune) and validation_images is None else 0.0
    evidence = Evidence(
        module,
        images,
        classes,
        class_names=class_names,
        mean=mean,
        std=std,
        strategy=strategy,
        calibration=calibration,
        hold_out=hold_out,
        validation_images=validation_images,
        name=name,
        seed=seed,
    )
    return evidence.submodel(
        macs=macs,
        parameters=parameters,
        bytes=bytes,
        latency=latency,
        tolerance=tolerance,
        tune=tune,
        recalibrate=recalibrate,
        multiple=multiple,
        latency_table=latency_table,
        formats=formats,
        half=half,
        int8=int8,
    )
