"""Synthesise labelled images from a network alone, for servers that have none.

After Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion" (CVPR 2020). Images are moved
until the network calls them what they are labelled, and until its batch norms see the means and variances that they saw
in training. Pixels come from a Fourier spectrum, as for pictures of filters (`server.painting`), whose amplitudes fall
with frequency as in nature; that takes the place of the paper's priors of smoothness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.recalibrate import batch_norms
from fedcaptor.server.painting import Canvas

_BATCH = 200  # images whose means and variances are matched together
_RATE = 0.3  # of Adam, at first; it falls to zero along a cosine
_MATCH = 30.0  # weight of the batch norms against the labels
_SHIFT = 2  # pixels by which each step sees the images moved, at most


def synthesise(
    base: BaseModel,
    each: int,
    steps: int = 100,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Images, Indices]:
    """Return images uint8 [N, H, W, C] of all classes, `each` of every one, with labels int64 [N].

    Args:
        base: The network; without batch norms, labels alone shape its images.
        each: Images of a class.
        steps: Steps of Adam.
        seed: Makes them repeatable.
        on_step: Called with (done, total) steps of all batches.
    """
    classes = base.groups.classes
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(classes * each, generator=generator) % classes
    parts = labels.tensor_split(-(-len(labels) // _BATCH))
    done, found = 0, []

    def one_more() -> None:
        nonlocal done
        done += 1
        on_step(done, len(parts) * steps)

    for part in parts:
        pixels = _batch(base, part, steps, generator, one_more)
        found.append((pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    return np.concatenate(found), labels.numpy()


def _batch(
    base: BaseModel, labels: torch.Tensor, steps: int, generator: torch.Generator, on_step: Callable[[], None]
) -> torch.Tensor:
    """Return pixels [n, C, H, W] in (0, 1) of images that are labelled so."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (base.mean, base.std))
    canvas = Canvas(base.groups.input_shape, mean)
    spectrum = torch.randn(len(labels), *canvas.shape, generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([spectrum], _RATE, (0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad(), _mismatches(base.module) as mismatches:
        for _ in range(steps):
            mismatches.clear()
            shift = torch.randint(-_SHIFT, _SHIFT + 1, (2,), generator=generator).tolist()
            seen = canvas(spectrum).roll(shift, (2, 3))  # by whole pixels: interpolated ones would be smoother
            loss = functional.cross_entropy(base.module((seen - mean) / std), labels)
            if mismatches:
                loss = loss + _MATCH * torch.stack(mismatches).mean()
            spectrum.grad = torch.autograd.grad(loss, spectrum)[0]
            optimiser.step()
            schedule.step()
            on_step()
    return canvas(spectrum.detach())


@contextmanager
def _mismatches(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect in a forward pass, of each batch norm, how far its input is from what it saw in training: the mean over
    channels of the squared difference of means, in deviations, and of that of the deviations' logarithms.
    """
    found: list[torch.Tensor] = []

    def read(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        expected = norm.running_var + norm.eps
        off = (x.mean(1) - norm.running_mean).square() / expected
        spread = ((x.var(1, unbiased=False) + norm.eps) / expected).log() / 2
        found.append((off + spread.square()).mean())

    with hooks([norm.register_forward_pre_hook(read) for norm in batch_norms(module)]):
        yield found
