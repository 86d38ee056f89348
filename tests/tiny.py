"""A world small enough to be lived through many times: bars on 12 × 12 pixels, and a network that knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.weights_file import save_state

CLASSES = 6
SIDE = 12
MODEL = "tests.tiny:network"


def network(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * (-(-shape[1] // 4)) * (-(-shape[2] // 4)), classes),
    )


def images(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy pictures uint8 [count, 12, 12, 1]: class c is a bar over two rows (c < 3) or columns, with its labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=count)
    x = rng.normal(80, 70, (count, SIDE, SIDE))
    for picture, label in zip(x, y, strict=True):
        start = 4 * (label % 3) + int(rng.integers(3))
        bar = picture if label < 3 else picture.T
        bar[start : start + 2] += 90
    return np.clip(x, 0, 255).astype(np.uint8)[..., None], y


def write(directory: Path, count: int = 1500, steps: int = 120) -> tuple[Path, Path]:
    """Data (`.npz`) and trained weights in `directory`; a second or two."""
    directory.mkdir(parents=True, exist_ok=True)
    data, weights = directory / "bars.npz", directory / "bars.safetensors"
    x, y = images(count, 0)
    np.savez_compressed(data, x=x, y=y)
    torch.manual_seed(0)
    module = network(CLASSES, (1, SIDE, SIDE)).train()
    part = split(load(str(data)))["base"]
    inputs, labels = normalise(x[part], (0.3,), (0.25,)), torch.from_numpy(y[part])
    optimiser = torch.optim.Adam(module.parameters(), 5e-3)
    for step in range(steps):
        batch = torch.arange(step * 64, (step + 1) * 64) % len(labels)
        loss = F.cross_entropy(module(inputs[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = state_of(module)
    save_state(weights, state, {"model": MODEL, "mean": "(0.3,)", "std": "(0.25,)"})
    return data, weights


def base_model(weights: Path) -> BaseModel:
    return BaseModel.load(weights, MODEL, (1, SIDE, SIDE))


def overrides(data: Path, weights: Path, *more: str) -> list[str]:
    """A run over this world that takes seconds; later values win."""
    return [
        f'data.source="{data}"',
        f'model.name="{MODEL}"',
        f'model.weights="{weights}"',
        "population.phones=30",
        "population.groups=2",
        "population.classes_min=1",
        "population.classes_max=2",
        "population.use_images=24",
        "population.check_images=16",
        "population.test_images=16",
        "privacy.min_cohort=20",
        "visualise.enabled=false",
        "clusters.most=3",
        "planner.macs=0.6",
        "planner.tolerance=0",
        "planner.multiple=2",
        "planner.images=60",
        "personal.ladder=[0.4, 0.6]",
        "personal.reference=5",
        "delivery.download=9",  # the network is smaller than a few images
        "personal.rows=256",
        *more,
    ]
