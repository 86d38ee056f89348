"""Trace a network once into channel groups: which channels are removed together, who reads them, what they cost.

Dependencies come from Torch-Pruning's DependencyGraph (Fang et al., CVPR 2023); what is read from it is checked by
slicing at random and comparing outputs, because a graph of operations does not show every use of a channel number.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, Consumer, Group, TensorSlice
from fedcaptor.common.torch_engine.costs import layers_of
from fedcaptor.common.torch_engine.network import CONVOLUTION, PER_CHANNEL, is_depthwise, mixes
from fedcaptor.common.torch_engine.verify import verify


def trace(module: nn.Module, name: str, input_shape: tuple[int, int, int]) -> ChannelGroups:
    """Trace `module` into channel groups, and check them by slicing it at random.

    Args:
        module: The network; it is copied, and stays as it is.
        name: What it is called, in errors and in the result.
        input_shape: (C, H, W) of its images.

    Raises:
        ModelError: A layer, which is named, cannot be sliced, or the sliced and the full network disagree.
    """
    network = copy.deepcopy(module).requires_grad_(True).eval()
    positions = _positions(network, name, input_shape)
    reader = _Reader(network, name, input_shape, list(positions))
    found = [reader.group(root) for root in reader.roots()]
    kept = tuple(group for group in found if group.output or group.consumers)
    if sum(group.output for group in kept) != 1:
        raise ModelError(f"{name}: the classes must be the outputs of one linear layer or convolution, end it with one")
    groups = ChannelGroups(name, input_shape, kept, layers_of(network, positions, kept), reader.tensors)
    verify(network, groups)
    return groups


def _positions(network: nn.Module, name: str, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Count the output map positions of each layer that has tensors, in execution order.

    Raises ModelError when a layer is used twice, or the network does not run.
    """
    positions: dict[str, int] = {}

    def record(layer: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            if layer in positions:
                raise ModelError(f"{name}: layer {layer} is used twice, must be used once: give each use its own layer")
            channels = getattr(module, "out_channels", getattr(module, "out_features", 1))
            positions[layer] = output[0].numel() // channels

        return module.register_forward_hook(hook)

    names = [key for key, _ in network.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(network.parameters())):
        raise ModelError(f"{name}: layers share tensors, must not: give each layer its own")
    handles = [record(n, m) for n, m in network.named_modules() if [*m.parameters(False), *m.buffers(False)]]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"{name} does not run on images {input_shape} ({error}): use another image size") from error
    finally:
        for handle in handles:
            handle.remove()
    return positions


@dataclass(frozen=True)
class _Member:
    """Record one use of a group's channels. `reads`: the layer mixes them; `ends`: they are the network's output.

    `pairs`: (root channel, element along the layer's dimension), sorted. `layer` is empty for a final bare operation.
    """

    layer: str
    reads: bool
    ends: bool
    pairs: list[tuple[int, int]]


class _Reader:
    """Read channel groups off a network's dependency graph."""

    def __init__(self, network: nn.Module, name: str, input_shape: tuple[int, int, int], order: list[str]) -> None:
        self.name, self.order = name, order
        self.tensors = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        self.modules = dict(network.named_modules())
        self.names = {module: key for key, module in self.modules.items()}
        with torch.enable_grad():
            self.graph = _dependency_graph(network, name, torch.zeros(1, *input_shape))
        self.last: Any = next(iter(self.graph.module2node))  # the graph is walked from the output

    def roots(self) -> list[str]:
        """Return the first producer of each group, in execution order."""
        roots, seen = [], set()
        for layer in self.order:
            module = self.modules[layer]
            if layer in seen or module not in self.graph.module2node or not _produces(module, self.name, layer):
                continue
            roots.append(layer)
            seen |= {member.layer for member in self._members(layer) if not member.reads}
        return roots

    def _members(self, root: str) -> list[_Member]:
        """Find all that is removed with the root's channels, in execution order."""
        module = self.modules[root]
        pruner = self.graph.get_pruner_of_module(module)
        every = list(range(pruner.get_out_channels(module)))
        members = []
        for item in self.graph.get_pruning_group(module, pruner.prune_out_channels, every):
            target = item.dep.target.module
            if isinstance(target, nn.Parameter):
                raise ModelError(f"{self.name}: a bare parameter meets the channels of {root}: put it into a layer")
            if target in self.names:
                reads = mixes(target) and not self.graph.is_out_channel_pruning_fn(item.dep.handler)
                pairs = sorted(zip(item.root_idxs, item.idxs, strict=True))
                members.append(_Member(self.names[target], reads, target is self.last and not reads, pairs))
            elif target is self.last:
                members.append(_Member("", False, True, []))
        return sorted(members, key=lambda m: self.order.index(m.layer) if m.layer else -1)

    def group(self, root: str) -> Group:
        """Describe the group whose first producer is `root`."""
        members = self._members(root)
        channels = self.tensors[f"{root}.weight"][0]
        slices: list[TensorSlice] = []
        producers: list[str] = []
        consumers: list[Consumer] = []
        for layer, reads, pairs in ((m.layer, m.reads, m.pairs) for m in members if m.layer):
            taps, offset = self._pattern(layer, channels, pairs)
            module: Any = self.modules[layer]
            if reads:
                slices.append(TensorSlice(f"{layer}.weight", 1, taps, offset))
                norm = self._norm(module)
                rectified = self._rectified(self.modules[norm] if norm else module)
                consumers.append(Consumer(layer, taps, offset, norm, rectified))
                continue
            if _produces(module, self.name, layer):
                self._require_whole(root, layer, channels, taps, offset)
                producers.append(layer)
            slices += [TensorSlice(key, 0, taps, offset) for key in self._per_channel(layer, module)]
        output = any(m.ends for m in members) and not consumers
        return Group(root, channels, tuple(slices), tuple(producers), tuple(consumers), output)

    def _pattern(self, layer: str, channels: int, pairs: list[tuple[int, int]]) -> tuple[int, int]:
        """Find (taps, offset) such that the elements of a channel are offset + channel·taps + t."""
        taps, offset = len(pairs) // channels, min((element for _, element in pairs), default=0)
        expected = [(c, offset + c * taps + t) for c in range(channels) for t in range(taps)]
        if not pairs or pairs != expected:
            raise ModelError(f"{self.name}: channels reach layer {layer} in an order that cannot be sliced: change it")
        return taps, offset

    def _require_whole(self, root: str, layer: str, channels: int, taps: int, offset: int) -> None:
        """Check that a layer makes exactly the channels of `root`; raises ModelError otherwise."""
        if (taps, offset, self.tensors[f"{layer}.weight"][0]) != (1, 0, channels):
            raise ModelError(
                f"{self.name}: layer {layer} is tied to a part of {root} by a sum or concatenation: separate them"
            )

    def _per_channel(self, layer: str, module: nn.Module) -> list[str]:
        """List state-dict keys of a layer's tensors whose first dimension is its channels."""
        if not isinstance(module, (CONVOLUTION, nn.Linear, *PER_CHANNEL)):
            raise ModelError(f"{self.name}: layer {layer} ({type(module).__name__}) cannot be sliced: replace it")
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return []
        keys = [f"{layer}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
        return [key for key in keys if key in self.tensors]

    def _norm(self, module: nn.Module) -> str | None:
        """Name the batch norm with running statistics that alone reads the layer's output, if there is one."""
        following = self._following(module)
        if not isinstance(following, nn.modules.batchnorm._BatchNorm) or following.running_mean is None:
            return None
        return self.names[following]

    def _rectified(self, module: nn.Module) -> float | None:
        """Return the largest value that the rectifier which alone reads the output lets pass; None without one."""
        operation = str(getattr(self._following(module), "_grad_fn", ""))
        if operation.startswith("Relu"):
            return math.inf
        # What a clamp's bounds are cannot be seen here: without Hardtanh it is ReLU6.
        others = any(type(other) is nn.Hardtanh for other in self.modules.values())
        return 6.0 if operation.startswith("Hardtanh") and not others else None

    def _following(self, module: nn.Module) -> Any:
        """Return the module or operation that alone reads the layer's output, if there is one."""
        following = [node.module for node in self.graph.module2node[module].outputs]
        return following[0] if len(following) == 1 else None


def _dependency_graph(network: nn.Module, name: str, x: torch.Tensor) -> Any:
    """Build Torch-Pruning's graph without views of parameters, whose sizes it would take for channel numbers."""
    import torch_pruning

    class Graph(torch_pruning.DependencyGraph):
        def _trace(self, *arguments: Any, **options: Any) -> Any:
            nodes = super()._trace(*arguments, **options)
            layers = set(network.modules())
            for node in nodes.values():
                node.inputs = [
                    n for n in node.inputs if n.inputs or n.module in layers or isinstance(n.module, nn.Parameter)
                ]
            return nodes

    try:
        return Graph().build_dependency(network, [x], verbose=False)
    except Exception as error:  # the library raises whatever it stumbles over
        raise ModelError(f"{name} cannot be traced ({error!r}): avoid reshapes and splits of channels") from error


def _produces(module: Any, name: str, layer: str) -> bool:
    """Tell whether the layer makes new channels. Raises ModelError on grouped and transposed convolutions."""
    if isinstance(module, CONVOLUTION) and not is_depthwise(module) and (module.groups > 1 or module.transposed):
        kind = "transposed" if module.transposed else f"grouped ({module.groups} groups)"
        raise ModelError(f"{name}: convolution {layer} is {kind}, must be plain or depthwise: replace it")
    return mixes(module)
