"""Training a base model on the base part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError, DataError, ModelError
from fedcaptor.common.files import check_writable
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.common.weights_file import save_state


def train(
    model: str,
    data: str = "embedded",
    *,
    out: str | Path,
    epochs: int = 12,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Train a network from random weights on the base part of a data set and write them, in half precision.

    Before the training it says what `fedcaptor.prune` will keep whole or refuse in such a network. The file also holds
    its measured accuracy and the mean and standard deviation of the pixels.

    Args:
        model: Name of a registered network, or `package.module:factory`.
        data: `embedded`, an `.npz` file, a folder of class folders, `torchvision:NAME`, or `package.module:function`.
        out: File to write, `.safetensors`.
        epochs: Passes over the base part.
        seed: Seed of weights, order and augmentation.
        progress: Whether a bar is shown on standard error.

    Returns:
        Accuracy on all images that were not trained on.

    Raises:
        ConfigError: The file cannot be written, or a seed or number of epochs that cannot be.
        DataError: The data cannot be read, or its base part has a single image.
        ModelError: The network cannot be built.

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
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    found = load(data)
    parts = split(found)
    if len(parts["base"]) < 2:
        raise DataError(f"{found.name}: part 'base' gets 1 image, at least 2 are needed to train: give more images")
    base, rest = parts["base"], np.concatenate([parts["reference"], parts["phones"]])
    pixels = found.x[base].reshape(-1, found.x.shape[3]) / 255
    mean, std = (tuple(round(float(v), 4) for v in f(pixels, 0)) for f in (np.mean, np.std))
    shape = (found.x.shape[3], *found.x.shape[1:3])
    network = build(model, len(found.names), shape)
    console = Console(stderr=True, quiet=not progress)
    for line in _unprunable(network, model, shape):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    x, y = normalise(found.x[base], mean, std), torch.from_numpy(found.y[base])
    _fit(network, x, y, rng, epochs, lambda passes: track(passes, f"training {model}", console=console))
    network.half().float()  # what the file will hold is what is measured
    hits = logits(network, normalise(found.x[rest], mean, std)).argmax(1) == found.y[rest]
    accuracy = float(hits.mean())
    save_state(
        out,
        state_of(network),
        {
            "model": model,
            "data": found.name,
            "mean": str(mean),
            "std": str(std),
            "accuracy": f"{accuracy:.4f}",
            "seed": str(seed),
            "epochs": str(epochs),
        },
    )
    console.print(f"{out}: accuracy {accuracy:.4f} on {len(rest)} images that were not trained on")
    return accuracy


def _unprunable(network: nn.Module, name: str, shape: tuple[int, int, int]) -> list[str]:
    """Say what pruning will keep whole, or that it will refuse this network."""
    try:
        return [f"prune will keep {kept}" for kept in trace(network, name, shape).kept_whole]
    except ModelError as error:
        return [f"prune will refuse this network: {error}"]


def _fit(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    rng: np.random.Generator,
    epochs: int,
    shown: Callable[[range], Iterable[int]],
) -> None:
    """AdamW with a one-cycle rate, on slightly moved and mirrored images [N, C, H, W] in batches of 64, none of one."""
    batches = -(-len(y) // 64) - (len(y) % 64 == 1)  # a batch norm cannot normalise a single image
    cuts = [64 * batch for batch in range(1, batches)]
    steps = batches * epochs
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    network.train()
    for _ in shown(range(epochs)):
        for batch in torch.from_numpy(rng.permutation(len(y))).tensor_split(cuts):
            loss = F.cross_entropy(network(_augment(x[batch], rng)), y[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to two pixels, flip half of the batches."""
    top, left = rng.integers(-2, 3, 2)
    x = torch.roll(F.pad(x, (2, 2, 2, 2)), (int(top), int(left)), (2, 3))[:, :, 2:-2, 2:-2]
    return x.flip(3) if rng.random() < 0.5 else x
