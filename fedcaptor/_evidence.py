"""What a network in memory shows of the target classes: gathered once, then a submodel for any budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedcaptor._images import Collected, Given, Normalisation, PerChannel, collect
from fedcaptor._measured_budgets import (
    Files,
    corrected,
    latency_figures,
    latency_here,
    require_latency,
    with_file_sizes,
)
from fedcaptor._submodel import Submodel
from fedcaptor._verification import (
    MOST_HELD,
    OnLayer,
    OnStep,
    judging_of,
    table_of,
    tuned_where_it_helps,
    within_tolerance,
)
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.class_names import labels_of
from fedcaptor.common.costs import predicted_latency_ratio
from fedcaptor.common.errors import ConfigError, DataError, NormalisationWarning
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.planner import Budget, require_possible
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.base import Submodel as Pruned
from fedcaptor.common.torch_engine.export import WEIGHTS, Format, precision_of
from fedcaptor.common.torch_engine.latency import measured_latency_ratio
from fedcaptor.common.torch_engine.normalisation import mismatch
from fedcaptor.common.torch_engine.recalibrate import batch_norms
from fedcaptor.common.torch_engine.recalibrate import recalibrate as recalibrated
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.torch_engine.strategies import SEE_ALL_CLASSES, STRATEGIES, PreparedStrategy, Task, strategy_of
from fedcaptor.protocols import PruningStrategy

CALIBRATION = 50  # images a class that are observed: more change a submodel little
FURTHER = 500  # images a class that are kept of batches beside those


class Evidence:
    """What a network shows of the target classes: gathered once, it serves any number of budgets.

    The network stays as it is, in weights, mode and gradients. It is traced here; images are observed when the first
    submodel is asked for.

    Args:
        module: Network from normalised images [N, C, H, W] to scores [N, classes].
        images: Unlabelled images of the target classes, all of one size: a uint8 array [N, H, W, C]; a float tensor
            [N, C, H, W], normalised already, or in [0, 1] where `mean` and `std` are given; a uint8 tensor; or batches
            of such tensors, as a `DataLoader` gives. Batches of (images, labels) may hold all classes: labels choose.
        classes: Classes that the submodel is to know: labels in the network's numbering, or names of `class_names`.
        class_names: Names of all of the network's classes, by label; saved files hold those of a submodel.
        mean: Mean of each channel that the network's training subtracted from pixels in [0, 1]. For uint8 images 0.5
            where it is left out, with a warning.
        std: Standard deviation that it divided by; given with `mean`.
        strategy: Name of a strategy (`reconstruct`, `reconstruct-agnostic`, `reconstruct-fisher`, `captor`, `taylor`,
            `l1`, `random`), `package.module:object`, or an object as in `fedcaptor.protocols.PruningStrategy`. Those
            that look at all classes need images of all, so batches with labels.
        calibration: Most images that are observed of each class, drawn by `seed`.
        hold_out: Share of the images that is not observed, for tolerances and tuning; all beyond `calibration` is held
            out as well.
        validation_images: Images in the form of `images` for tolerances and for judging tuning; takes their place.
        name: What the network is called in files and messages; its class's name if left out.
        seed: Seed of all that is drawn.

    Raises:
        ConfigError: A class, seed, strategy or normalisation that does not fit.
        DataError: Images of another form, or none of a target class.
        ModelError: A network that cannot be traced; the message names the layer.

    Example:
        ```python
        evidence = fedcaptor.Evidence(network, images, classes=[3, 5], mean=0.5, std=0.25)
        for macs in (0.5, 0.3, 0.1):
            print(evidence.submodel(macs=macs))
        ```
    """

    def __init__(
        self,
        module: nn.Module,
        images: Given,
        classes: Sequence[int | str] | npt.NDArray[np.integer],
        *,
        class_names: Sequence[str] | None = None,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        strategy: str | PruningStrategy = "reconstruct",
        calibration: int = CALIBRATION,
        hold_out: float = 0.0,
        validation_images: Given | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        require_seed(seed)
        if calibration < 1 or not 0 <= hold_out < 1:
            raise ConfigError(f"calibration is {calibration}, hold_out {hold_out}: give at least 1, and one in [0, 1)")
        self.strategy = strategy_of(strategy) if isinstance(strategy, str) else strategy
        self.seed, wanted = seed, labels_of(classes, class_names)
        others = calibration if sees_all(strategy) else 0
        room = _room(wanted.tolist(), calibration + FURTHER, others)
        found = collect(images, room, seed, partial(Normalisation.of, mean, std))
        self.normalisation = found.normalisation
        name = name or type(module).__name__
        base = BaseModel.of(module, name, found.input_shape, self.normalisation.mean, self.normalisation.std)
        self.base = named_base(base, class_names)
        self.classes = target_classes_of(wanted, self.base.groups.classes)
        self._images = found.x
        warn_of_normalisation(self.base, found.x, self.normalisation.pixels)
        self._parts = _Parts.draw(found, self.classes, calibration, hold_out, seed)
        self._validation: Images | None = None
        if validation_images is not None:
            more = collect(validation_images, room, seed, lambda *_: self.normalisation)
            own = slice(None) if more.labels is None else np.isin(more.labels, self.classes)
            self._validation = more.x[own]

    def submodel(
        self,
        *,
        macs: float | None = None,
        parameters: float | None = None,
        bytes: int | None = None,
        latency: float | None = None,
        tolerance: float | None = None,
        tune: int = 0,
        recalibrate: bool = False,
        multiple: int = 8,
        latency_table: LatencyTable | str | Path | None = None,
        formats: Sequence[str] = (WEIGHTS,),
        half: bool = False,
        int8: bool = False,
        on_step: OnStep | None = None,
        on_layer: OnLayer | None = None,
    ) -> Submodel:
        """The best submodel within budgets, all of which hold together.

        Args:
            macs: Multiply-accumulates to keep, as a ratio of the full network's, in (0, 1].
            parameters: Stored values to keep, as a ratio.
            bytes: Most bytes of each file of `formats`, as written. `Submodel.save` holds other files to it as well.
            latency: Seconds of one image to keep, as a ratio: planned by `latency_table`, and, unless that is of a
                phone, measured again here and now, and corrected.
            tolerance: Smallest submodel within the other budgets that differs from the full network, limited to the
                classes, on at most this share of the images held out.
            tune: Steps, three minutes at most, of learning from the full network's answers; kept where images held out
                tell that it is nearer to the full network. 0: no training.
            recalibrate: Measure batch-norm statistics anew; helps strategies that do not reconstruct.
            multiple: Kept channels of a group are multiples of this, or all.
            latency_table: Seconds by layer, or its file, written if it is missing; measured here and now without one.
            formats: Endings of the files that `bytes` is for, such as `.onnx`.
            half: Whether programs among them are in half precision.
            int8: Whether they are in eight bits.
            on_step: Called with the number of tuning steps taken.
            on_layer: Called with the layers measured for a latency table, and their number.

        Returns:
            The submodel; what was held against held-out images is in its `measured`.

        Raises:
            PlanError: No budget; one that cannot be held as measured (the message names the nearest possible, or by how
                much it is missed); or no submodel within the tolerance.
            DataError: No images are held out where some are needed, or too few to judge tuning.
            ConfigError: A format that cannot be written.
        """
        if tolerance is not None and (macs, parameters, bytes, latency) == (None,) * 4:
            macs = 1.0
        seen, precision = self._images[self._parts.seen], precision_of(half, int8)
        files = Files(tuple(Format(ending, precision) for ending in formats), seen, self.normalisation.pixels)
        budget = Budget(macs, multiple, parameters, bytes, latency)
        budget = with_file_sizes(self.base, self.classes, budget, files)
        require_possible(self.base.groups, len(self.classes), budget)
        if latency is not None:
            budget = replace(budget, table=table_of(self.base, latency_table, multiple, on_layer))
        if bytes is not None or latency is not None:
            budget = corrected(self._selection, budget, files)
        measured: dict[str, float] = {}
        if tolerance is None:
            pruned = self._selection.submodel(budget)
        else:
            pruned, measured = within_tolerance(self._selection, budget, tolerance, self._held("verify the tolerance"))
        if recalibrate:
            pruned = recalibrated(pruned, seen)
        if tune:
            pruned, more = self._tuned(pruned, tune, on_step)
            measured |= more
        if budget.table is not None:
            counts = pruned.plan.counts()
            measured["latency_ratio_predicted"] = round(
                predicted_latency_ratio(self.base.groups, budget.table, counts), 4
            )
        if (most := latency_here(budget)) is not None:
            found = measured_latency_ratio(pruned.module, self.base.module, self.base.groups.input_shape)
            require_latency(found, most)
            measured |= latency_figures(found)
        file = Standalone.of(pruned, self.normalisation.pixels)
        return Submodel(file, dict(pruned.plan.kept), measured, bytes, seen)

    @cached_property
    def _selection(self) -> PreparedStrategy:
        x, parts = self._images, self._parts
        return self.strategy(Task(self.base, self.classes, x[parts.seen], x[parts.seen_of_all], self.seed))

    def _held(self, what: str) -> Images:
        held = self._images[self._parts.rest] if self._validation is None else self._validation
        if len(held) == 0:
            raise DataError(f"0 images are held out to {what}: raise hold_out, or give validation_images")
        return held

    def _tuned(self, pruned: Pruned, steps: int, on_step: OnStep | None) -> tuple[Pruned, dict[str, float]]:
        """Judged on held-out images, a quarter of all at most; the others teach, those observed too."""
        seen, rest = self._parts.seen, self._parts.rest
        if self._validation is None:
            held, judging = self._held("judge tuning"), judging_of(len(seen) + len(rest))
            held, rest = held[:judging], rest[judging:]
        else:
            held = self._validation[:MOST_HELD]
        images = self._images[np.concatenate([seen, rest])]
        return tuned_where_it_helps(pruned, images, held, steps, self.seed, on_step)


def named_base(base: BaseModel, class_names: Sequence[str] | None) -> BaseModel:
    """The network with names of its classes. Raises ConfigError for another number of names."""
    if class_names is None:
        return base
    if len(class_names) != base.groups.classes:
        raise ConfigError(
            f"class_names are {len(class_names)}, the network has {base.groups.classes} classes: name each"
        )
    return replace(base, class_names=tuple(class_names))


def warn_of_normalisation(base: BaseModel, images: Images, pixels: bool = True) -> None:
    """Warns where images [N, H, W, C] do not look like those of the network's training. `pixels`: false for floats
    that are taken for normalised.
    """
    remedy = "give mean and std of the network's training (--mean and --std on the command line)"
    if (found := mismatch(base, images)) is not None:
        warnings.warn(
            f"images seem to be normalised otherwise than in training: {found}; {remedy}",
            NormalisationWarning,
            stacklevel=3,
        )
    elif not pixels and not batch_norms(base.module) and images.min() >= 0 and images.max() <= 1:
        warnings.warn(
            f"float images lie in [0, 1] and are taken for normalised, since mean and std are not given: {remedy}, "
            "0 and 1 if it was trained on such images",
            NormalisationWarning,
            stacklevel=3,
        )


def sees_all(strategy: str | PruningStrategy) -> bool:
    """Whether a strategy may look at images of all classes; of one's own nobody knows."""
    return strategy in SEE_ALL_CLASSES or not (isinstance(strategy, str) and strategy in STRATEGIES)


def target_classes_of(classes: Indices, available: int) -> Indices:
    """The classes, ascending. Raises ConfigError for none, or one that the network does not know."""
    targets = np.unique(classes)
    if len(targets) == 0 or targets[0] < 0 or targets[-1] >= available:
        given = ",".join(map(str, targets)) or "none"
        raise ConfigError(f"classes are {given}, labels of this model lie in 0..{available - 1}")
    return targets


def _room(classes: list[int], own: int, others: int) -> Callable[[int | None], int]:
    """How many images of a label are kept of batches; of all together where they have no labels."""

    def most(label: int | None) -> int:
        if label is None:
            return own * max(len(classes), 1)
        return own if label in classes else others

    return most


class _Parts:
    """Places of the images that are observed (`seen`), of those with other classes beside them (`seen_of_all`), and of
    those that are held out (`rest`).
    """

    def __init__(self, seen: Indices, seen_of_all: Indices, rest: Indices) -> None:
        self.seen, self.seen_of_all, self.rest = seen, seen_of_all, rest

    @classmethod
    def draw(cls, found: Collected, classes: Indices, calibration: int, hold_out: float, seed: int) -> _Parts:
        """Raises DataError when labels leave a target class without an image, or none is left to observe."""
        rng, labels = np.random.default_rng(seed), found.labels
        if labels is None:
            pools, most = [np.arange(len(found.x))], calibration * len(classes)
        else:
            pools, most = [np.flatnonzero(labels == label) for label in classes], calibration
            for label, pool in zip(classes, pools, strict=True):
                if len(pool) == 0:
                    raise DataError(f"no image of class {label} is among those given: give some of each target class")
        seen, rest = [], []
        for pool in pools:
            order, count = rng.permutation(pool), min(most, len(pool) - int(np.ceil(hold_out * len(pool))))
            seen.append(order[:count])
            rest.append(order[count:])
        observed = np.sort(np.concatenate(seen))
        if len(observed) == 0:
            raise DataError(f"hold_out is {hold_out}, no image of {len(found.x)} is left to observe: give more")
        beside = np.empty(0, np.int64) if labels is None else np.flatnonzero(~np.isin(labels, classes))
        return cls(observed, np.concatenate([observed, beside]), rng.permutation(np.concatenate(rest)))
