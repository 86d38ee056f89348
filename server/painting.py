"""Paint pictures by activation maximisation: what a filter responds to, found by the network alone.

After Olah et al., "Feature Visualization" (Distill 2017). A picture is parametrised by its Fourier spectrum, low
frequencies moving fastest, in decorrelated colours; gradient ascent raises the filter's activation, most of all in the
middle of its map. Each step sees the picture turned, scaled and shifted a little, so that what works at one place only
brings nothing. Total variation and a penalty on the distance to the mean colour suppress what the filter does not ask
for.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Images
from fedcaptor.common.groups import Consumer, Group, TensorSlice
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import channels_first

# Columns: brightness, then the two hues by which natural images vary most, each as strong as it varies. They are the
# fixed numbers of the paper's code (lucid), of ImageNet's pixels; no image is read here.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True)
class Visualisation:
    """Configure how pictures are painted.

    Attributes:
        steps: Steps of Adam.
        batch: Pictures painted at once.
        reach: What an amplitude may move in all steps together.
        turn: Each step sees the picture turned by up to so many degrees,
        zoom: scaled by up to e^±zoom,
        shift: and shifted by up to so many pixels.
        smooth: Weight of total variation; that of the filter's gradient is 1 (root mean square by pixel).
        mean_colour: Weight of the penalty on the distance to the mean colour.
        leak: Share of the activation before the nonlinearity, which wakes filters that are silent at the start.
        focus: Width (standard deviation) of the middle that counts, over that of the map.
        seed: Makes pictures repeatable.
    """

    steps: int = 20
    batch: int = 64
    reach: float = 4.0
    turn: float = 8.0
    zoom: float = 0.1
    shift: float = 2.0
    smooth: float = 0.1
    mean_colour: float = 0.1
    leak: float = 0.1
    focus: float = 0.3
    seed: int = 0


def paint(
    base: BaseModel,
    group: Group,
    targets: torch.Tensor,
    settings: Visualisation,
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> Images:
    """Paint pictures uint8 [n, H, W, C] that excite filters `targets` [n] of a group, all side by side.

    `on_step` is called after each step.
    """
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (base.mean, base.std))
    canvas = Canvas(base.groups.input_shape, mean)
    spectrum = 0.1 * torch.randn(len(targets), *canvas.shape, generator=generator)
    spectrum.requires_grad_()
    optimiser = torch.optim.Adam([spectrum], settings.reach / settings.steps, (0.8, 0.99))
    with torch.enable_grad():
        for _ in range(settings.steps):
            picture = canvas(spectrum)
            leaf = picture.detach().requires_grad_()
            seen = (jittered(leaf, settings, generator) - mean) / std
            reached = activation(base.module, group, seen, targets, settings.leak, settings.focus)
            up = torch.autograd.grad(reached.sum(), leaf)[0]
            up = up / up.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
            down = settings.smooth * _roughness(leaf.detach()) + settings.mean_colour * (leaf.detach() - mean)
            spectrum.grad = torch.autograd.grad(picture, spectrum, down - up)[0]
            optimiser.step()
            on_step()
    return (canvas(spectrum.detach()) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


class Canvas:
    """Turn spectra [n, *shape] into pixels [n, C, H, W] in (0, 1); amplitudes fall with frequency as in nature."""

    def __init__(self, input_shape: tuple[int, int, int], mean: torch.Tensor) -> None:
        channels, height, width = input_shape
        down, across = torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)
        frequency = (down.square() + across.square()).sqrt().clamp_min(1 / max(height, width))
        self.size = (height, width)
        self.shape = (channels, *frequency.shape, 2)
        self.scale = (1 / (4 * frequency)).unsqueeze(-1)
        self.start = mean.clamp(0.02, 0.98).logit()
        self.colours = _colours(channels)

    def __call__(self, spectrum: torch.Tensor) -> torch.Tensor:
        waves = torch.view_as_complex((spectrum * self.scale).contiguous())
        pixels = torch.fft.irfft2(waves, s=self.size, norm="ortho")
        return torch.sigmoid(torch.einsum("dc,nchw->ndhw", self.colours, pixels) + self.start)


def _colours(channels: int) -> torch.Tensor:
    """Return the matrix [C, C] from painted to image channels; but for RGB, hues move less than brightness."""
    if channels == 3:
        colours = torch.tensor(_COLOURS)
        return colours / colours.square().sum(0).max().sqrt()
    grey = torch.full((channels, channels), 1 / channels)
    return grey + 0.4 * (torch.eye(channels) - grey)


def jittered(pictures: torch.Tensor, settings: Visualisation, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale and shift each of the pictures [n, C, H, W] at random, mirrored at its border."""
    height, width = pictures.shape[2:]
    turn, zoom, right, down = (2 * torch.rand(4, len(pictures), generator=generator) - 1).unbind()
    angle, scale = turn * math.radians(settings.turn), (zoom * settings.zoom).exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    across = torch.stack([cos, -sin * height / width, right * 2 * settings.shift / width], 1)
    along = torch.stack([sin * width / height, cos, down * 2 * settings.shift / height], 1)
    grid = functional.affine_grid(torch.stack([across, along], 1), list(pictures.shape), align_corners=False)
    seen: torch.Tensor = functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return seen


def _roughness(picture: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of the total variation Σ |differences| (softened at 0.1) by pixel."""
    gradient = torch.zeros_like(picture)
    for dim in (2, 3):
        difference = picture.diff(dim=dim)
        slope = difference / (difference.square() + 0.01).sqrt()
        gradient.narrow(dim, 1, slope.shape[dim]).add_(slope)
        gradient.narrow(dim, 0, slope.shape[dim]).sub_(slope)
    return gradient


class StopForward(Exception):
    """Ends a forward pass from within a hook, when all that is needed has been recorded."""


def activation(
    module: nn.Module, group: Group, x: torch.Tensor, targets: torch.Tensor, leak: float = 0.0, focus: float = math.inf
) -> torch.Tensor:
    """Average the activation [n] of filter `targets[i]` on image i over positions and consumers.

    `leak`: weight of its mean before the nonlinearity, at the output of the last layer that makes or scales it.
    `focus`: positions of a map weigh as a bell around its middle, of this width over the map's; infinity: all alike.
    """
    layers = dict(module.named_modules())
    rows = torch.arange(len(targets))
    seen: list[torch.Tensor] = []

    def mean(layer: nn.Module, x: torch.Tensor, place: Consumer | TensorSlice) -> torch.Tensor:
        x = channels_first(x, layer)
        return (channels_of(x, group, place)[rows, targets] * _middle(x, place, focus)).sum(1)

    def read(consumer: Consumer) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append(mean(layer, inputs[0], consumer) / len(group.consumers))
            if len(seen) == wanted:
                raise StopForward

        return hook

    def before(made: TensorSlice) -> Callable[..., None]:
        def hook(layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            seen.append(leak * mean(layer, output, made))

        return hook

    wanted = len(group.consumers)
    handles = [layers[c.layer].register_forward_pre_hook(read(c)) for c in group.consumers]
    own = [place for place in group.slices if place.dim == 0]
    if leak and own:
        wanted += 1
        handles.append(layers[own[-1].tensor.rpartition(".")[0]].register_forward_hook(before(own[-1])))
    with contextlib.suppress(StopForward), hooks(handles):
        module(x)
    return torch.stack(seen).sum(0)


def channels_of(x: torch.Tensor, group: Group, place: Consumer | TensorSlice) -> torch.Tensor:
    """Take the group's channels [n, channels, taps·positions] out of maps [n, C·taps, H, W], or [n, C·taps]."""
    return x[:, place.offset : place.offset + group.channels * place.taps].reshape(len(x), group.channels, -1)


def _middle(x: torch.Tensor, place: Consumer | TensorSlice, focus: float) -> torch.Tensor:
    """Return weights [taps·positions] that sum to one: bells on maps [n, C, H, W], equal behind a flatten."""
    if x.dim() != 4:
        return torch.full((place.taps,), 1 / place.taps)
    offsets = [(torch.arange(side) + 0.5) / side - 0.5 for side in x.shape[2:]]
    down, across = (torch.exp(-(offset / focus).square() / 2) for offset in offsets)
    bell = down.view(-1, 1) * across
    return (bell / bell.sum() / place.taps).flatten().repeat(place.taps)
