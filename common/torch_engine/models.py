"""The project's own networks: one decorated function a model, each takes any image size that its pooling allows.

A factory is called with (classes, (C, H, W)) and returns a network from float [N, C, H, W] to logits [N, classes].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedcaptor.common.errors import ModelError

Shape = tuple[int, int, int]
Factory = Callable[[int, Shape], nn.Module]

MODELS: dict[str, Factory] = {}
MADE_FOR: dict[str, tuple[int, Shape]] = {}
"""The number of classes and the (C, H, W) of images that each network was designed for; others are taken as well."""


def model(name: str, classes: int = 10, input_shape: Shape = (3, 32, 32)) -> Callable[[Factory], Factory]:
    """Register a factory under `name`, with what its network was designed for."""

    def register(factory: Factory) -> Factory:
        MODELS[name] = factory
        MADE_FOR[name] = classes, input_shape
        return factory

    return register


def require_size(name: str, shape: Shape, smallest: int) -> None:
    """Check that pooling leaves something of an image; raises ModelError when a side is below `smallest`."""
    if min(shape[1:]) < smallest:
        raise ModelError(
            f"images are {shape[1]}×{shape[2]}, {name} needs at least {smallest}×{smallest}: use larger ones"
        )


def initialise(module: nn.Module) -> nn.Module:
    """Initialise convolutions and linear layers (He et al. 2015), with zero biases, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Make a convolution without bias and its batch norm; stride 1 keeps the map's size."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class ConvNet(nn.Module):
    """Chain 3×3 convolutions and 2×2 max pools ("M"), then a global mean and one hidden linear layer."""

    def __init__(self, widths: tuple[int | str, ...], channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            else:
                layers += [*conv_norm(channels, width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.features(x).mean((2, 3)))


@model("small-cnn", input_shape=(1, 28, 28))
def small_cnn(classes: int, input_shape: Shape) -> nn.Module:
    """Build six convolutions for phones: 0.66 M parameters, 28 M MACs at 28×28."""
    require_size("small-cnn", input_shape, 16)
    return ConvNet((32, "M", 48, 96, "M", 96, 192, "M", 192), input_shape[0], 128, classes)


@model("vgg16")
def vgg16(classes: int, input_shape: Shape) -> nn.Module:
    """Build VGG-16 with batch norm at CIFAR size (Simonyan & Zisserman 2015), global mean, one hidden layer of 512."""
    widths = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
    return ConvNet(widths, input_shape[0], 512, classes)


class AlexNet(nn.Module):
    """Chain five convolutions with bias, overlapping 3×3/2 pools, two hidden layers with dropout."""

    def __init__(self, classes: int, input_shape: Shape, hidden: int = 1024) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, (height, width) = input_shape[0], input_shape[1:]
        for outputs, kernel, pooled in (
            (64, 5, True),
            (192, 5, True),
            (384, 3, False),
            (256, 3, False),
            (256, 3, True),
        ):
            layers += [nn.Conv2d(channels, outputs, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
            channels = outputs
            if pooled:
                layers.append(nn.MaxPool2d(3, 2))
                height, width = (height - 1) // 2, (width - 1) // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(channels * height * width, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        return self.classifier(self.features(x).flatten(1))


@model("alexnet")
def alexnet(classes: int, input_shape: Shape) -> nn.Module:
    """Build AlexNet at CIFAR size (Krizhevsky et al. 2012)."""
    require_size("alexnet", input_shape, 15)
    return AlexNet(classes, input_shape)


class Block(nn.Module):
    """Compute a basic residual block; a strided 1×1 projection where the shape changes (He et al. 2016, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv_norm(outputs, outputs)
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*(conv_norm(inputs, outputs, 1, stride) if changes else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the body's output to the shortcut's, then rectify."""
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Chain residual blocks to a CIFAR ResNet of 6·blocks + 2 layers (He et al. 2016, section 4.2).

    Its three stages have 16, 32 and 64 channels.
    """

    def __init__(self, classes: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(channels, 16), nn.ReLU(inplace=True))
        stages: list[nn.Module] = []
        inputs = 16
        for outputs in (16, 32, 64):
            for number in range(blocks):
                stages.append(Block(inputs, outputs, 2 if number == 0 and outputs > 16 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


@model("resnet20")
def resnet20(classes: int, input_shape: Shape) -> nn.Module:
    """Build the CIFAR ResNet-20 (He et al. 2016)."""
    return ResNet(classes, input_shape[0], 3)


@model("resnet56")
def resnet56(classes: int, input_shape: Shape) -> nn.Module:
    """Build the CIFAR ResNet-56 (He et al. 2016)."""
    return ResNet(classes, input_shape[0], 9)
