"""Register torchvision's networks under `torchvision/…`, for any number of classes and image channels.

torchvision is imported when the first of them is built.
"""

from __future__ import annotations

from torch import nn

from fedcaptor.common.torch_engine.models import Shape, model, require_size

_IMAGENET = 1000, (3, 224, 224)


def _built(name: str, smallest: int, classes: int, input_shape: Shape) -> nn.Module:
    """Build a torchvision network without weights; `smallest`: least image side. Raises ModelError below it."""
    from torchvision import models

    require_size(f"torchvision/{name}", input_shape, smallest)
    network: nn.Module = getattr(models, name)(weights=None, num_classes=classes)
    _set_image_channels(network, input_shape[0])
    return network


def _set_image_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution when the images have another number of channels than three."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        (first.kernel_size[0], first.kernel_size[1]),
        (first.stride[0], first.stride[1]),
        first.padding if isinstance(first.padding, str) else (first.padding[0], first.padding[1]),
        bias=first.bias is not None,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, replacement)


@model("torchvision/vgg16", *_IMAGENET)
def vgg16(classes: int, input_shape: Shape) -> nn.Module:
    """Build torchvision's VGG-16."""
    return _built("vgg16", 32, classes, input_shape)


@model("torchvision/alexnet", *_IMAGENET)
def alexnet(classes: int, input_shape: Shape) -> nn.Module:
    """Build torchvision's AlexNet."""
    return _built("alexnet", 63, classes, input_shape)


@model("torchvision/resnet18", *_IMAGENET)
def resnet18(classes: int, input_shape: Shape) -> nn.Module:
    """Build torchvision's ResNet-18."""
    return _built("resnet18", 1, classes, input_shape)


@model("torchvision/mobilenet_v2", *_IMAGENET)
def mobilenet_v2(classes: int, input_shape: Shape) -> nn.Module:
    """Build torchvision's MobileNetV2."""
    return _built("mobilenet_v2", 1, classes, input_shape)
