"""Training a base model on the base part of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from fedcaptor._checkpoint import Training
from fedcaptor._progress import shown_on
from fedcaptor.common.arrays import Indices
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError, DataError, ModelError
from fedcaptor.common.files import check_writable
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.base import CLASS_NAMES
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.common.weights_file import save_state

BATCH = 64


def train(
    model: str,
    data: str = "embedded",
    *,
    out: str | Path,
    epochs: int = 12,
    seed: int = 0,
    fresh: bool = False,
    progress: bool = True,
) -> float:
    """Train a network from random weights on the base part of a data set and write them, in half precision.

    Before the training it says what `fedcaptor.prune` will keep whole or refuse in such a network. The file also holds
    its measured accuracy, the names of the classes, and mean and standard deviation of the pixels.
    After each epoch the accuracy on the reference part is told, and all that the training needs to go on is stored in
    `OUT.checkpoint`: the same call goes on from there after a kill, and ends with the same weights. The checkpoint is
    removed at the end. An interruption (Ctrl-C) leaves the weights of the best epoch so far in `out`.

    Args:
        model: Name of a registered network, or `package.module:factory`.
        data: `embedded`, an `.npz` file, a folder of class folders, `torchvision:NAME`, or `package.module:function`.
        out: File to write, `.safetensors`.
        epochs: Passes over the base part.
        seed: Seed of weights, order and augmentation.
        fresh: Start anew where there is a checkpoint.
        progress: Whether progress is shown on standard error: bars on a terminal, lines elsewhere.

    Returns:
        Accuracy on all images that were not trained on.

    Raises:
        ConfigError: The file cannot be written, or a seed or number of epochs that cannot be.
        DataError: The data cannot be read, or its base part has a single image.
        ModelError: The network cannot be built.
        StateError: The checkpoint is damaged, or of other settings.

    Example:
        ```python
        fedcaptor.train("small-cnn", "photos/", out="small.safetensors", epochs=5)
        ```
    """
    out = Path(out)
    require_seed(seed)
    if epochs < 1:
        raise ConfigError(f"epochs are {epochs}, must be at least 1: give more")
    check_writable(out)
    console = Console(stderr=True, quiet=not progress, highlight=False, markup=False, soft_wrap=True)
    torch.manual_seed(seed)
    images = _Images.of(load(data))
    shares = ", ".join(f"{use} {len(part)} ({len(part) / len(images.y):.0%})" for use, part in images.uses.items())
    console.print(f"{model} on {images.name}, {len(images.y)} images: {shares}")
    shape = (images.x.shape[3], *images.x.shape[1:3])
    network = build(model, len(images.names), shape)
    for line in _unprunable(network, model, shape):
        console.print(line)
    settings = {"model": model, "data": images.name, "images": images.digest, "epochs": epochs, "seed": seed}
    training = _prepared(network, len(images.base), epochs, seed)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists() and not fresh:
        training.resume(checkpoint, settings)
        console.print(f"{checkpoint}: goes on after epoch {training.epoch}")

    def finish(epoch: int) -> float:
        accuracy = _written(out, network, images, {"model": model, "seed": str(seed), "epochs": str(epoch)})
        console.print(f"{out}: accuracy {accuracy:.4f} on {len(images.rest)} images that were not trained on")
        return accuracy

    try:
        with shown_on(console) as on_progress:
            while training.epoch < epochs:
                _fit_epoch(training, images, lambda done, total: on_progress(f"training {model}", done, total))
                accuracy = images.accuracy(network, images.reference)
                training.finish_epoch(accuracy)
                training.save(checkpoint, settings)
                console.print(f"epoch {training.epoch} of {epochs}: validation accuracy {accuracy:.4f}")
    except KeyboardInterrupt:
        if training.best_epoch == 0:
            console.print("interrupted in the first epoch: nothing is written")
        else:
            network.load_state_dict(training.best)
            finish(training.best_epoch)
            console.print(
                f"interrupted: these are the weights of epoch {training.best_epoch}, the best of {training.epoch} by "
                "validation accuracy; the same command goes on"
            )
        raise
    accuracy = finish(epochs)
    checkpoint.unlink()
    return accuracy


@dataclass(frozen=True, eq=False)
class _Images:
    """A data set and its parts: `base` is trained on, `reference` validated on; accuracy is of `rest`, which includes
    the latter.
    """

    name: str
    names: tuple[str, ...]
    x: npt.NDArray[np.uint8]
    y: Indices
    base: Indices
    reference: Indices
    phones: Indices
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: Dataset) -> _Images:
        parts = split(data)
        if len(parts["base"]) < 2:
            raise DataError(f"{data.name}: part 'base' gets 1 image, at least 2 are needed to train: give more images")
        pixels = data.x[parts["base"]].reshape(-1, data.x.shape[3]) / 255
        mean, std = (tuple(round(float(v), 4) for v in f(pixels, 0)) for f in (np.mean, np.std))
        return cls(data.name, data.names, data.x, data.y, **parts, mean=mean, std=std)

    @property
    def uses(self) -> dict[str, Indices]:
        """Parts by what they serve for, in words."""
        return {"trains on": self.base, "validates on": self.reference, "keeps for phones": self.phones}

    @property
    def rest(self) -> Indices:
        return np.concatenate([self.reference, self.phones])

    @cached_property
    def trained_on(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, normalised [N, C, H, W], with labels [N]."""
        return normalise(self.x[self.base], self.mean, self.std), torch.from_numpy(self.y[self.base])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is trained and validated on."""
        parts = (self.x[self.base], self.y[self.base], self.x[self.reference], self.y[self.reference])
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def accuracy(self, network: nn.Module, part: Indices) -> float:
        """Share of the images numbered `part` that the network, in eval mode, answers right."""
        answers = logits(network, normalise(self.x[part], self.mean, self.std)).argmax(1)
        return float((answers == self.y[part]).mean())


def _unprunable(network: nn.Module, name: str, shape: tuple[int, int, int]) -> list[str]:
    """Say what pruning will keep whole, or that it will refuse this network."""
    try:
        return [f"prune will keep {kept}" for kept in trace(network, name, shape).kept_whole]
    except ModelError as error:
        return [f"prune will refuse this network: {error}"]


def _written(out: Path, network: nn.Module, images: _Images, metadata: dict[str, str]) -> float:
    """Write a network's weights, with what was measured of them; returns the accuracy on images not trained on."""
    network.half().float()  # what the file will hold is what is measured
    accuracy = images.accuracy(network, images.rest)
    names = {} if images.names == tuple(map(str, range(len(images.names)))) else {CLASS_NAMES: json.dumps(images.names)}
    statistics = {"mean": str(images.mean), "std": str(images.std), "accuracy": f"{accuracy:.4f}"}
    save_state(out, state_of(network), {**metadata, "data": images.name, **names, **statistics})
    return accuracy


def _prepared(network: nn.Module, count: int, epochs: int, seed: int) -> Training:
    """AdamW with a one-cycle rate, for so many images and epochs."""
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, (len(_cuts(count)) + 1) * epochs)
    return Training(network, optimiser, schedule, np.random.default_rng(seed))


def _cuts(count: int) -> range:
    """Where so many images are cut into batches, so that none has one image: a batch norm cannot normalise it."""
    return range(BATCH, count - 1, BATCH)


def _fit_epoch(training: Training, images: _Images, on_step: Callable[[int, int], None]) -> None:
    """One pass over slightly moved and mirrored images; `on_step`: steps done and those of all epochs."""
    x, y = images.trained_on
    batches = torch.from_numpy(training.rng.permutation(len(y))).tensor_split(list(_cuts(len(y))))
    training.network.train()
    for batch in batches:
        loss = F.cross_entropy(training.network(_augment(x[batch], training.rng)), y[batch], label_smoothing=0.05)
        training.optimiser.zero_grad()
        loss.backward()
        training.optimiser.step()
        training.schedule.step()
        on_step(training.schedule.last_epoch, training.schedule.total_steps)
    training.network.eval()


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to two pixels, flip half of the batches."""
    top, left = rng.integers(-2, 3, 2)
    x = torch.roll(F.pad(x, (2, 2, 2, 2)), (int(top), int(left)), (2, 3))[:, :, 2:-2, 2:-2]
    return x.flip(3) if rng.random() < 0.5 else x
