"""`fedcaptor train`: a base model from the base part of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F

from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.files import check_writable
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.weights_file import save_state


def train_model(model: str, source: str, out: Path, epochs: int, seed: int, console: Console) -> float:
    """Train, write half-precision weights with their measured accuracy, return it (on all that was not trained on)."""
    check_writable(out)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data = load(source)
    parts = split(data)
    base, rest = parts["base"], np.concatenate([parts["reference"], parts["phones"]])
    pixels = data.x[base].reshape(-1, data.x.shape[3]) / 255
    mean, std = (tuple(round(float(v), 4) for v in f(pixels, 0)) for f in (np.mean, np.std))
    network = build(model, len(data.names), (data.x.shape[3], *data.x.shape[1:3]))
    x, y = normalise(data.x[base], mean, std), torch.from_numpy(data.y[base])
    steps = -(-len(y) // 64) * epochs
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, steps)
    network.train()
    for _ in track(range(epochs), description=f"training {model}", console=console):
        for batch in torch.from_numpy(rng.permutation(len(y))).split(64):
            inputs = _augment(x[batch], rng)
            loss = F.cross_entropy(network(inputs), y[batch], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()
    network.half().float()  # what the file will hold is what is measured
    hits = logits(network, normalise(data.x[rest], mean, std)).argmax(1) == data.y[rest]
    accuracy = float(hits.mean())
    save_state(
        out,
        state_of(network),
        {
            "model": model,
            "data": data.name,
            "mean": str(mean),
            "std": str(std),
            "accuracy": f"{accuracy:.4f}",
            "seed": str(seed),
            "epochs": str(epochs),
        },
    )
    console.print(f"{out}: accuracy {accuracy:.4f} on {len(rest)} images that were not trained on")
    return accuracy


def _augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to two pixels, flip half of the batches."""
    top, left = rng.integers(-2, 3, 2)
    x = torch.roll(F.pad(x, (2, 2, 2, 2)), (int(top), int(left)), (2, 3))[:, :, 2:-2, 2:-2]
    return x.flip(3) if rng.random() < 0.5 else x
