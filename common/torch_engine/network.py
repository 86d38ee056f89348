"""Networks that take on the shape of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import State

Shape = tuple[int, ...]

CONVOLUTION = nn.modules.conv._ConvNd
PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)


def state_of(module: nn.Module) -> State:
    """Return a module's tensors as numpy arrays that share its memory, in its order."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def network(module: nn.Module, state: State, *, share: bool = False) -> nn.Module:
    """Fill a module in place with possibly sliced tensors, from which its layers take their sizes.

    Args:
        module: A network of `registry.build` or `registry.skeleton`.
        state: Arrays by state-dict key.
        share: Use the arrays themselves where their type is the network's: the caller gives them away. Otherwise they
            are copied.

    Returns:
        The module, in eval mode, parameters without gradients.

    Raises:
        ModelError: A tensor is missing, unknown, or no slice of the network's.
    """
    filled: set[str] = set()
    training = False
    for name, layer in module.named_modules(remove_duplicate=False):
        training |= layer.training
        prefix = f"{name}." if name else ""
        shapes = _fill(layer, prefix, state, share)
        if shapes:
            filled.update([prefix + key for key in shapes])
            _fit(name, layer, shapes)
    unknown = next((key for key in state if key not in filled), None)
    if unknown is not None:
        raise ModelError(f"tensor {unknown} is not in the network: use the weights of this model")
    return module.eval() if training else module


def _fill(layer: nn.Module, prefix: str, state: State, share: bool) -> dict[str, Shape]:
    """Replace a layer's own tensors by those of the state; returns their shapes.

    They are stored where `setattr` would, which looks for the name among all kinds first: half of the time of a small
    network.
    """
    shapes: dict[str, Shape] = {}
    kinds: tuple[dict[str, Any], ...] = (layer._parameters, layer._buffers)
    for own in kinds:
        for key, full in own.items():
            if full is None or key in layer._non_persistent_buffers_set:
                continue
            name = prefix + key
            found = state.get(name)
            if found is None:
                raise ModelError(f"tensor {name} {tuple(full.shape)} is missing: use the weights of this model")
            if found.shape != full.shape:
                _check(name, tuple(found.shape), tuple(full.shape), _sliceable(layer, key))
            kind = np.float32 if full.is_floating_point() else found.dtype
            tensor = torch.from_numpy(found if share and found.dtype == kind else np.array(found, dtype=kind))
            own[key] = nn.Parameter(tensor, requires_grad=False) if own is layer._parameters else tensor
            shapes[key] = found.shape
    return shapes


def _sliceable(layer: nn.Module, attribute: str) -> int:
    """Count the leading dimensions of a layer's tensor that may be sliced."""
    if isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTION) and layer.groups == 1):
        return 2 if attribute == "weight" else 1
    return 1 if isinstance(layer, (CONVOLUTION, *PER_CHANNEL)) else 0


def is_depthwise(layer: Any) -> bool:
    """Tell whether a layer is a convolution with one filter a channel (and more than one channel)."""
    return isinstance(layer, CONVOLUTION) and 1 < layer.groups == layer.in_channels == layer.out_channels


def is_grouped(layer: Any) -> bool:
    """Tell whether a layer is a convolution in several groups, of which none is a single channel's own filter."""
    return isinstance(layer, CONVOLUTION) and layer.groups > 1 and not is_depthwise(layer)


def mixes(layer: nn.Module) -> bool:
    """Tell whether a layer mixes its input channels: a linear layer or a convolution that is not depthwise."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, CONVOLUTION) and not is_depthwise(layer))


def channels_first(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """View what a layer reads or makes as [N, C, …]: a linear layer has its channels last, also of maps."""
    return x.movedim(-1, 1) if isinstance(layer, nn.Linear) else x


def channels_back(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Undo `channels_first`."""
    return x.movedim(1, -1) if isinstance(layer, nn.Linear) else x


def _check(key: str, shape: tuple[int, ...], full: tuple[int, ...], free: int) -> None:
    """Check that a tensor is a slice of the network's in its first `free` dimensions; raises ModelError."""
    fits = len(shape) == len(full) and shape[free:] == full[free:]
    if not fits or any(not 0 < a <= b for a, b in zip(shape[:free], full[:free], strict=True)):
        raise ModelError(f"tensor {key} is {shape}, the network has {full}: use the weights of this model")


def _fit(name: str, layer: Any, shapes: Mapping[str, Shape]) -> None:
    """Let a layer's attributes follow the shapes of its tensors; raises ModelError when these disagree."""
    if not isinstance(layer, (CONVOLUTION, nn.Linear, *PER_CHANNEL)):
        return
    sizes = {shape[0] for shape in shapes.values() if shape}
    if len(sizes) > 1:
        raise ModelError(f"tensors of {name} disagree on its channels, {dict(shapes)}: slice them by one plan")
    vars(layer).update(_sizes(layer, shapes.get("weight", ()), next(iter(sizes), None)))


def _sizes(layer: Any, weight: Shape, channels: int | None) -> dict[str, int | None]:
    """List the attributes of a layer that say how large its tensors are."""
    if isinstance(layer, CONVOLUTION):
        wide = layer.out_channels // layer.groups  # outputs of a group, which goes or stays as a whole
        groups, rest = divmod(weight[0], wide) if layer.groups > 1 else (1, 0)
        if rest:
            raise ModelError(f"{weight[0]} filters are no whole groups of {wide}: slice them by a plan of this network")
        return {"groups": groups, "out_channels": weight[0], "in_channels": weight[1] * groups}
    if isinstance(layer, nn.Linear):
        return {"out_features": weight[0], "in_features": weight[1]}
    return {"num_parameters" if isinstance(layer, nn.PReLU) else "num_features": channels} if channels else {}
