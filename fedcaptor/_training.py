"""Training a base model on the base part of a data set."""

from __future__ import annotations

import json
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
from fedcaptor.common.files import check_writable
from fedcaptor.common.torch_engine.base import CLASS_NAMES
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
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

    The file also holds its measured accuracy, the names of the classes, and mean and standard deviation of the pixels.

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
        ConfigError: The file cannot be written.
        DataError: The data cannot be read.
        ModelError: The network cannot be built.

    Example:
        ```python
        fedcaptor.train("small-cnn", "photos/", out="small.safetensors", epochs=5)
        ```
    """
    out = Path(out)
    check_writable(out)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    found = load(data)
    parts = split(found)
    base, rest = parts["base"], np.concatenate([parts["reference"], parts["phones"]])
    pixels = found.x[base].reshape(-1, found.x.shape[3]) / 255
    mean, std = (tuple(round(float(v), 4) for v in f(pixels, 0)) for f in (np.mean, np.std))
    network = build(model, len(found.names), (found.x.shape[3], *found.x.shape[1:3]))
    x, y = normalise(found.x[base], mean, std), torch.from_numpy(found.y[base])
    console = Console(stderr=True, quiet=not progress)
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
            **_names(found.names),
            "seed": str(seed),
            "epochs": str(epochs),
        },
    )
    console.print(f"{out}: accuracy {accuracy:.4f} on {len(rest)} images that were not trained on")
    return accuracy


def _names(names: tuple[str, ...]) -> dict[str, str]:
    """Metadata of class names, none where the data numbers its classes."""
    return {} if names == tuple(map(str, range(len(names)))) else {CLASS_NAMES: json.dumps(names)}


def _fit(
    network: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    rng: np.random.Generator,
    epochs: int,
    shown: Callable[[range], Iterable[int]],
) -> None:
    """AdamW with a one-cycle rate, on slightly moved and mirrored images [N, C, H, W] in batches of 64."""
    steps = -(-len(y) // 64) * epochs
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    network.train()
    for _ in shown(range(epochs)):
        for batch in torch.from_numpy(rng.permutation(len(y))).split(64):
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
