"""Painting: pictures climb their filter, stay pictures, and are drawn by the seed alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.models import ConvNet
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.server.painting import Canvas, Visualisation, activation, jittered, paint

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = Visualisation(turn=0, zoom=0, shift=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    network = ConvNet((8, "M", 12), 3, 10, 4).eval().requires_grad_(False)
    state = {key: tensor.numpy().copy() for key, tensor in network.state_dict().items()}
    return BaseModel("any", state, trace(network, "any", (3, 16, 12)), (0.4, 0.5, 0.6), (0.2,) * 3, network)


def reached(base: BaseModel, steps: int) -> np.ndarray:
    """Activation before the rectifier [filters] of pictures painted in so many steps."""
    group = base.groups.prunable[1]
    targets = torch.arange(group.channels)
    pictures = paint(base, group, targets, replace(Visualisation(), steps=steps, reach=0.15 * steps), generator())
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - torch.tensor(base.mean).view(3, 1, 1)) / 0.2
    before = activation(base.module, group, x, targets, 1, 0.3) - activation(base.module, group, x, targets, 0, 0.3)
    return before.numpy()


def test_more_steps_climb_higher(base: BaseModel) -> None:
    few, some, many = (reached(base, steps) for steps in (1, 8, 24))
    # One of these random filters asks for single pixels, which no smooth picture has.
    assert (some > few).mean() > 0.9
    assert (many > some).mean() > 0.9


def test_a_seed_gives_its_pictures(base: BaseModel) -> None:
    group, settings = base.groups.prunable[0], Visualisation(steps=2)
    first, same, other = (paint(base, group, torch.arange(4), settings, generator(seed)) for seed in (3, 3, 4))
    assert first.shape == (4, 16, 12, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_canvas_begins_at_the_mean_and_stays_within_its_bounds(channels: int) -> None:
    mean = torch.linspace(0.3, 0.6, channels).view(1, -1, 1, 1)
    canvas = Canvas((channels, 9, 6), mean)
    torch.testing.assert_close(canvas(torch.zeros(2, *canvas.shape)), mean.expand(2, channels, 9, 6))
    wild = canvas(1000 * torch.randn(2, *canvas.shape, generator=generator()))
    assert torch.isfinite(wild).all()
    assert 0 <= wild.min() < 0.01
    assert 0.99 < wild.max() <= 1


def test_large_waves_move_more_than_small_ones_and_brightness_more_than_hue() -> None:
    canvas = Canvas((3, 16, 16), torch.full((1, 3, 1, 1), 0.5))

    def moved_by(colour: int, frequency: int) -> float:
        spectrum = torch.zeros(1, *canvas.shape)
        spectrum[0, colour, 0, frequency, 0] = 0.1
        return float((canvas(spectrum) - 0.5).square().mean().sqrt())

    assert moved_by(0, 1) == pytest.approx(4 * moved_by(0, 4), rel=0.01)
    assert moved_by(0, 1) > 2 * moved_by(1, 1) > 2 * moved_by(2, 1) > 0


def test_nothing_moves_without_movement_and_each_picture_moves_by_itself() -> None:
    pictures = torch.rand(1, 3, 10, 7, generator=generator()).repeat(4, 1, 1, 1)
    torch.testing.assert_close(jittered(pictures, STILL, generator()), pictures)
    shaken = jittered(pictures, Visualisation(), generator())
    assert shaken.shape == pictures.shape
    assert all((shaken[0] - other).abs().max() > 0.01 for other in shaken[1:])


def test_a_shift_moves_by_so_many_pixels() -> None:
    picture = torch.zeros(1, 1, 11, 11)
    picture[..., 5, 5] = 1
    places = []
    for seed in range(40):
        mass = jittered(picture, replace(STILL, shift=2), generator(seed))[0, 0]
        along = torch.arange(11.0) - 5
        places.append([float((mass.sum(dim) * along).sum() / mass.sum()) for dim in (0, 1)])
    assert np.abs(places).max() <= 2
    assert np.abs(places).max(0).min() > 1.5


def test_focus_weighs_the_middle_and_infinity_nothing() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    ).requires_grad_(False)
    network[0].weight.fill_(1)
    mapped = nn.Sequential(network[0], network[1], nn.Conv2d(1, 1, 1), *network[2:]).eval().requires_grad_(False)
    group = trace(mapped, "any", (1, 3, 3)).prunable[0]
    x = torch.zeros(2, 1, 3, 3)
    x[0, 0, 1, 1], x[1, 0, 0, 0] = 1, 1
    targets = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(activation(mapped, group, x, targets), torch.full((2,), 1 / 9))
    middle, corner = activation(mapped, group, x, targets, focus=1 / 3).tolist()
    edge = math.exp(-0.5)  # one place off is a whole width
    assert middle == pytest.approx(1 / (1 + 2 * edge) ** 2)
    assert corner == pytest.approx(middle * edge**2)
