"""Build networks by name: registered ones, and a user's own as `package.module:factory`."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache

import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.plugins import resolve
from fedcaptor.common.torch_engine import torchvision_models  # noqa: F401  registers its models
from fedcaptor.common.torch_engine.models import MADE_FOR, MODELS, Factory, Shape

_CONTAINERS = frozenset({dict, OrderedDict, set, list})


def names() -> list[str]:
    """List the registered names, sorted."""
    return sorted(MODELS)


def made_for(name: str) -> tuple[int, Shape]:
    """Return the number of classes and the (C, H, W) of images that a registered network was designed for.

    Raises ModelError for an unknown name.
    """
    if name not in MADE_FOR:
        raise ModelError(f"model is {name!r}, must be one of {', '.join(names())}")
    return MADE_FOR[name]


def build(name: str, classes: int, input_shape: Shape) -> nn.Module:
    """Build a network with random weights in eval mode, from images [N, *input_shape] to logits [N, classes].

    Args:
        name: A registered name, or `package.module:factory`, imported with the current directory on the path; the
            factory is called with (classes, input_shape).
        classes: Number of classes.
        input_shape: (C, H, W) of the images.

    Raises:
        ModelError: The name is unknown, or the factory raises.
    """
    return _call(name, _factory(name), classes, input_shape).eval()


def skeleton(name: str, classes: int, input_shape: Shape) -> nn.Module:
    """Build a network for `torch_engine.network.network` to fill: tensors have no storage, nothing is drawn at random.

    A user's own network is built as by `build`, since it may compute with its tensors.
    """
    if name not in MODELS:
        return build(name, classes, input_shape)
    return _twin(_skeleton(name, classes, tuple(input_shape)), {})


@lru_cache(maxsize=8)
def _skeleton(name: str, classes: int, input_shape: Shape) -> nn.Module:
    """Build a registered network on the meta device, once for all callers."""
    with torch.device("meta"):
        return build(name, classes, input_shape)


def _twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy modules with dictionaries of their own, and the same tensors in them: ten times faster than a deep copy.

    `made`: copies by original, so that a module under two names stays one.
    """
    if module not in made:
        twin = made[module] = type(module).__new__(type(module))
        containers = {key: value for key, value in vars(module).items() if type(value) in _CONTAINERS}
        children = {key: None if x is None else _twin(x, made) for key, x in module._modules.items()}
        own = {key: value.copy() if value else type(value)() for key, value in containers.items()}
        vars(twin).update(vars(module) | own | {"_modules": children})
    return made[module]


def _factory(name: str) -> Factory:
    """Find or import a factory. Raises ModelError for an unknown name."""
    if name in MODELS:
        return MODELS[name]
    factory: Factory = resolve(name, "model", ", ".join(names()), ModelError)
    return factory


def _call(name: str, factory: Factory, classes: int, input_shape: Shape) -> nn.Module:
    """Call a factory; raises ModelError for whatever it raises, and for what is no module."""
    try:
        network = factory(classes, input_shape)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"factory of {name!r} failed for {classes} classes and images {input_shape}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"factory of {name!r} gave a {type(network).__name__}, must give a torch.nn.Module")
    return network
