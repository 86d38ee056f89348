"""Networks as a user would bring them, each with something that tracing must get right or refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Shape = tuple[int, int, int]


class Own(nn.Module):
    """A network from named layers and a forward function over them."""

    def __init__(self, forward: Callable[[Own, torch.Tensor], torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def plain(classes: int, shape: Shape) -> nn.Module:
    """Convolutions with bias, PReLU, a flatten into the only linear layer."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, padding=1),
        nn.PReLU(6),
        nn.MaxPool2d(4),
        nn.Conv2d(6, 5, (1, 3), padding=(0, 1)),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(5 * (shape[1] // 4) * (shape[2] // 4), classes),
    )


def flat_norm(classes: int, shape: Shape) -> nn.Module:
    """Batch norm behind the flatten: several elements a channel in its tensors as well."""
    features = 5 * (shape[1] // 4) * (shape[2] // 4)
    return nn.Sequential(
        nn.Conv2d(shape[0], 5, 4, 4), nn.Flatten(), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, classes)
    )


def concatenating(classes: int, shape: Shape) -> nn.Module:
    """Two branches side by side, then batch norm, a depthwise and a plain convolution."""
    return Own(
        lambda m, x: m.head(
            m.mix(torch.relu(m.deep(m.norm(torch.cat([m.one(x), torch.relu(m.two(x))], 1))))).mean((2, 3))
        ),
        one=nn.Conv2d(shape[0], 4, 3, padding=1),
        two=nn.Conv2d(shape[0], 6, 1),
        norm=nn.BatchNorm2d(10),
        deep=nn.Conv2d(10, 10, 3, groups=10),
        mix=nn.Conv2d(10, 7, 1),
        head=nn.Linear(7, classes),
    )


def dense(classes: int, shape: Shape) -> nn.Module:
    """A concatenation that is read, and concatenated again with what was made of it."""
    return Own(
        lambda m, x: m.head(
            torch.cat([m.three(b := torch.cat([a := torch.relu(m.one(x)), m.two(a)], 1)), b], 1).mean((2, 3))
        ),
        one=nn.Conv2d(shape[0], 4, 4, 4),
        two=nn.Conv2d(4, 5, 1),
        three=nn.Conv2d(9, 5, 1),
        head=nn.Linear(14, classes),
    )


def concatenating_flat(classes: int, shape: Shape) -> nn.Module:
    """Flattened behind a concatenation: the dependency graph has no offsets there."""
    return Own(
        lambda m, x: m.head(torch.cat([m.one(x), m.two(x)], 1).flatten(1)),
        one=nn.Conv2d(shape[0], 4, 4, 4),
        two=nn.Conv2d(shape[0], 5, 4, 4),
        head=nn.Linear(9 * (shape[1] // 4) * (shape[2] // 4), classes),
    )


def splitting(classes: int, shape: Shape) -> nn.Module:
    """Halves of one layer's channels go different ways."""
    return Own(
        lambda m, x: m.head(torch.cat([(h := m.one(x).chunk(2, 1))[0], m.two(h[1])], 1).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 1),
        two=nn.Conv2d(4, 4, 1),
        head=nn.Linear(8, classes),
    )


def concatenating_image(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.two(torch.cat([x, m.one(x)], 1)).mean((2, 3))),
        one=nn.Conv2d(shape[0], 6, 1),
        two=nn.Conv2d(shape[0] + 6, 8, 1),
        head=nn.Linear(8, classes),
    )


def depthwise_with_bias(classes: int, shape: Shape) -> nn.Module:
    """A depthwise convolution on the image (uncuttable) and one between plain ones."""
    return Own(
        lambda m, x: m.head(torch.relu(m.point(torch.relu(m.deep(m.one(m.image(x)))))).mean((2, 3))),
        image=nn.Conv2d(shape[0], shape[0], 3, groups=shape[0]),
        one=nn.Conv2d(shape[0], 6, 1),
        deep=nn.Conv2d(6, 6, 3, groups=6),
        point=nn.Conv2d(6, 8, 1),
        head=nn.Linear(8, classes),
    )


def gated(classes: int, shape: Shape) -> nn.Module:
    """Squeeze and excitation: channels are multiplied by what a small network makes of them."""
    return Own(
        lambda m, x: m.head((torch.relu(y := m.one(x)) * torch.sigmoid(m.up(torch.relu(m.down(y))))).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 3),
        down=nn.Conv2d(8, 3, 1),
        up=nn.Conv2d(3, 8, 1),
        head=nn.Linear(8, classes),
    )


def all_convolutional(classes: int, shape: Shape) -> nn.Module:
    """No linear layer: the classes are maps of the last convolution."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3), nn.ReLU(), nn.Conv2d(6, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def grouped(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.mix(m.one(x)).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 1),
        mix=nn.Conv2d(8, 8, 1, groups=2),
        head=nn.Linear(8, classes),
    )


def grouped_twice(classes: int, shape: Shape) -> nn.Module:
    """Grouped convolutions of three and six groups in a row: what goes is a third of each, gated as a whole."""
    return Own(
        lambda m, x: m.head(
            ((y := torch.relu(m.norm(m.six(m.three(m.one(x)))))) * torch.sigmoid(m.gate(y))).mean((2, 3))
        ),
        one=nn.Conv2d(shape[0], 12, 3),
        three=nn.Conv2d(12, 18, 3, groups=3),
        six=nn.Conv2d(18, 24, 1, groups=6, bias=False),
        norm=nn.BatchNorm2d(24),
        gate=nn.Conv2d(24, 24, 1),
        head=nn.Linear(24, classes),
    )


def grouped_residual(classes: int, shape: Shape) -> nn.Module:
    """What a grouped convolution makes is added to what it reads."""
    return Own(
        lambda m, x: m.head(torch.relu((y := m.one(x)) + m.mix(y)).flatten(1)),
        one=nn.Conv2d(shape[0], 8, 4, 4),
        mix=nn.Conv2d(8, 8, 3, padding=1, groups=4),
        head=nn.Linear(8 * (shape[1] // 4) * (shape[2] // 4), classes),
    )


def grouped_image(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.mix(x).mean((2, 3))),
        mix=nn.Conv2d(shape[0], 8, 1, groups=2),
        head=nn.Linear(8, classes),
    )


def grouped_classes(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.mix(m.one(x)).mean((2, 3)),
        one=nn.Conv2d(shape[0], 8, 1),
        mix=nn.Conv2d(8, classes, 1, groups=2),
    )


def transposed(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.up(m.one(x)).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 2, 2),
        up=nn.ConvTranspose2d(8, 6, 2, 2),
        head=nn.Linear(6, classes),
    )


def halved(classes: int, shape: Shape) -> nn.Module:
    """Channels are split, one half is computed on, and both are shuffled: those inside the branch may go."""

    def forward(m: Own, x: torch.Tensor) -> torch.Tensor:
        left, right = m.one(x).chunk(2, 1)
        y = torch.cat([left, m.last(torch.relu(m.deep(m.first(right))))], 1)
        y = y.view(len(y), 2, 4, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return m.head(torch.relu(m.mix(y)).mean((2, 3)))

    return Own(
        forward,
        one=nn.Conv2d(shape[0], 8, 3),
        first=nn.Conv2d(4, 6, 1),
        deep=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        last=nn.Conv2d(6, 4, 1),
        mix=nn.Conv2d(8, 7, 1),
        head=nn.Linear(7, classes),
    )


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def inverted(classes: int, shape: Shape) -> nn.Module:
    """A block with its channels last and a scale of its own: those that it adds to stay, those inside may go."""

    def forward(m: Own, x: torch.Tensor) -> torch.Tensor:
        y = m.one(x)
        inside = torch.nn.functional.gelu(m.up(m.norm(m.deep(y).permute(0, 2, 3, 1))))
        return m.head((y + m.scale(m.down(inside).permute(0, 3, 1, 2))).mean((2, 3)))

    return Own(
        forward,
        one=nn.Conv2d(shape[0], 6, 4, 4),
        deep=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        norm=nn.LayerNorm(6),
        up=nn.Linear(6, 24),
        down=nn.Linear(24, 6),
        scale=Scale(6),
        head=nn.Linear(6, classes),
    )


def shared(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.twice(m.twice(m.one(x))).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 1),
        twice=nn.Conv2d(8, 8, 1),
        head=nn.Linear(8, classes),
    )


def normalised_over_channels(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.norm(m.one(x)).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 1),
        norm=nn.GroupNorm(2, 8),
        head=nn.Linear(8, classes),
    )


def shuffled(classes: int, shape: Shape) -> nn.Module:
    """Channel numbers change places by arithmetic on them."""
    return Own(
        lambda m, x: m.head(torch.relu(m.one(x)).roll(1, 1).mean((2, 3))),
        one=nn.Conv2d(shape[0], 8, 1),
        head=nn.Linear(8, classes),
    )


def fixed_view(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head(m.one(x).mean((2, 3)).view(-1, 8)),
        one=nn.Conv2d(shape[0], 8, 1),
        head=nn.Linear(8, classes),
    )


def sum_with_image(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: m.head((m.one(x) + x).mean((2, 3))),
        one=nn.Conv2d(shape[0], shape[0], 1),
        head=nn.Linear(shape[0], classes),
    )


def two_heads(classes: int, shape: Shape) -> nn.Module:
    return Own(
        lambda m, x: torch.cat([m.left(y := m.one(x).mean((2, 3))), m.right(y)], 1),
        one=nn.Conv2d(shape[0], 8, 1),
        left=nn.Linear(8, classes // 2),
        right=nn.Linear(8, classes - classes // 2),
    )


def wrong(classes: int, shape: Shape) -> object:
    """No network at all."""
    return classes, shape


def failing(classes: int, shape: Shape) -> nn.Module:
    raise RuntimeError("no weights today")
