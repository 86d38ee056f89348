"""Trace a network once into channel groups: which channels are removed together, who reads them, what they cost.

Dependencies come from Torch-Pruning's DependencyGraph (Fang et al., CVPR 2023); what is read from it is checked by
slicing at random and comparing outputs, because a graph of operations does not show every use of a channel number.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, Consumer, Group, TensorSlice
from fedcaptor.common.torch_engine.costs import layers_of
from fedcaptor.common.torch_engine.network import CONVOLUTION, PER_CHANNEL, is_grouped, mixes
from fedcaptor.common.torch_engine.verify import verify


def trace(module: nn.Module, name: str, input_shape: tuple[int, int, int]) -> ChannelGroups:
    """Trace `module` into channel groups, and check them by slicing it at random.

    Channels that cannot be removed are in no group; `ChannelGroups.whole` says why.

    Args:
        module: The network; it is copied, and stays as it is.
        name: What it is called, in errors and in the result.
        input_shape: (C, H, W) of its images.

    Raises:
        ModelError: No channels but those of the classes can be removed (layers are named), or the sliced and the full
            network disagree.
    """
    network = copy.deepcopy(module).requires_grad_(True).eval()
    positions = _positions(network, name, input_shape)
    reader = _Reader(network, name, input_shape, list(positions))
    found, whole = _joined(*reader.groups(), reader)
    kept = tuple(group for group in found if group.output or group.consumers)
    if sum(group.output for group in kept) != 1:
        raise ModelError(f"{name}: the classes must be the outputs of one linear layer or convolution, end it with one")
    groups = ChannelGroups(name, input_shape, kept, layers_of(network, positions, kept), reader.tensors, whole)
    _require_prunable(groups)
    try:
        verify(network, groups)
    except ModelError:
        groups = _verified(network, positions, groups)
    return groups


def _verified(network: nn.Module, positions: dict[str, int], groups: ChannelGroups) -> ChannelGroups:
    """Leave out the groups that cannot be sliced, each tried alone; raises ModelError when that does not help."""
    whole, kept = dict(groups.whole), []
    for group in groups.groups:
        try:
            verify(network, groups, only=group)
            kept.append(group)
        except ModelError:
            if group.output:
                raise
            whole[group.name] = _UNEVEN
    less = replace(groups, groups=tuple(kept), layers=layers_of(network, positions, kept), whole=whole)
    _require_prunable(less)
    verify(network, less)
    return less


def _require_prunable(groups: ChannelGroups) -> None:
    """Check that there are channels to remove; raises ModelError naming what keeps its channels otherwise."""
    if groups.prunable:
        return
    reasons = "; ".join(groups.kept_whole) or "no layer reads any, add one"
    raise ModelError(f"{groups.model}: nothing can be removed, it must keep {reasons}")


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


class _Whole(Exception):
    """Says why all channels of a layer must stay."""


@dataclass(frozen=True)
class _Member:
    """Record one use of a group's channels. `reads`: the layer mixes them; `ends`: they are the network's output.

    `pairs`: (root channel, element along the layer's dimension), sorted. `layer` is empty for a bare operation, and
    `obstacle` says why it keeps the channels from being removed, if it does.
    """

    layer: str
    reads: bool
    ends: bool
    pairs: list[tuple[int, int]]
    obstacle: str = ""


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

    def groups(self) -> tuple[list[Group], dict[str, str]]:
        """Describe all groups in execution order, and say of the other roots why their channels must stay."""
        found, whole = [], {}
        for root in self.roots():
            try:
                found.append(self.group(root))
            except _Whole as reason:
                whole[root] = str(reason)
        return found, whole

    def roots(self) -> list[str]:
        """Return the first producer of each group, in execution order. Raises ModelError on transposed convolutions."""
        roots, seen = [], set()
        for layer in self.order:
            module = self.modules[layer]
            if not mixes(module):
                continue
            if isinstance(module, CONVOLUTION) and module.transposed:
                raise ModelError(f"{self.name}: convolution {layer} is transposed: use upsampling and a convolution")
            if layer in seen or module not in self.graph.module2node:
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
                members.append(_Member("", False, False, [], _PARAMETER))
            elif target in self.graph.obstacles:
                members.append(_Member("", False, False, [], self.graph.obstacles[target]))
            elif target in self.names:
                reads = mixes(target) and not self.graph.is_out_channel_pruning_fn(item.dep.handler)
                pairs = sorted(zip(item.root_idxs, item.idxs, strict=True))
                members.append(_Member(self.names[target], reads, target is self.last and not reads, pairs))
            elif target is self.last:
                members.append(_Member("", False, True, []))
        return sorted(members, key=lambda m: self.order.index(m.layer) if m.layer else -1)

    def group(self, root: str) -> Group:
        """Describe the group whose first producer is `root`. Raises _Whole when its channels must stay."""
        members = self._members(root)
        reasons = [member.obstacle for member in members if member.obstacle]
        channels = self.tensors[f"{root}.weight"][0]
        slices: list[TensorSlice] = []
        producers: list[str] = []
        consumers: list[Consumer] = []
        for member in members:
            layer, module = member.layer, self.modules[member.layer]
            if not layer:
                continue
            try:
                taps, offset = self._pattern(layer, channels, member.pairs)
                if member.reads:
                    consumers.append(self._consumer(layer, module, taps, offset))
                    places = [] if is_grouped(module) else [(f"{layer}.weight", 1)]  # one group's inputs stay as many
                else:
                    places = [(key, 0) for key in self._per_channel(layer, module)]
                    if mixes(module):
                        self._require_whole(root, layer, channels, taps, offset)
                        producers.append(layer)
            except _Whole as reason:
                reasons.append(str(reason))
            else:
                slices += [TensorSlice(key, dim, taps, offset) for key, dim in places]
        if reasons:
            first, *others = dict.fromkeys(reasons)
            more = f"; {others[0]}" if others else ""
            raise _Whole(first + more + (f"; and {len(others) - 1} more such" if len(others) > 1 else ""))
        output = any(m.ends for m in members) and not consumers
        return Group(root, channels, tuple(slices), tuple(producers), tuple(consumers), output)

    def _consumer(self, layer: str, module: nn.Module, taps: int, offset: int) -> Consumer:
        """Describe a layer that reads a group, with what follows it."""
        norm = self._norm(module)
        return Consumer(layer, taps, offset, norm, self._rectified(self.modules[norm] if norm else module))

    def in_order(self, group: Group) -> Group:
        """Sort what a joined group is made of in execution order."""
        place = self.order.index
        return replace(
            group,
            slices=tuple(sorted(group.slices, key=lambda part: place(part.tensor.rpartition(".")[0]))),
            producers=tuple(sorted(group.producers, key=place)),
            consumers=tuple(sorted(group.consumers, key=lambda reader: place(reader.layer))),
        )

    def _pattern(self, layer: str, channels: int, pairs: list[tuple[int, int]]) -> tuple[int, int]:
        """Find (taps, offset) such that the elements of a channel are offset + channel·taps + t."""
        taps, offset = len(pairs) // channels, min((element for _, element in pairs), default=0)
        expected = [(c, offset + c * taps + t) for c in range(channels) for t in range(taps)]
        if not pairs or pairs != expected:
            raise _Whole(f"they reach layer {layer} in an order that cannot be sliced: keep channels in order")
        return taps, offset

    def _require_whole(self, root: str, layer: str, channels: int, taps: int, offset: int) -> None:
        """Check that a layer makes exactly the channels of `root`; raises _Whole otherwise."""
        if (taps, offset, self.tensors[f"{layer}.weight"][0]) != (1, 0, channels):
            raise _Whole(
                f"a sum, or a flatten behind a concatenation, ties layer {layer} to a part of {root}: separate them"
            )

    def _per_channel(self, layer: str, module: nn.Module) -> list[str]:
        """List state-dict keys of a layer's tensors whose first dimension is its channels."""
        if not isinstance(module, (CONVOLUTION, nn.Linear, *PER_CHANNEL)):
            kind = type(module).__name__
            raise _Whole(f"layer {layer} ({kind}) computes over them: use a batch norm or layers without weights")
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


_PARAMETER = "a parameter outside a layer meets them: use a depthwise 1 × 1 convolution or a batch norm for it"
_REORDERED = "an operation splits or reorders them: keep channels together and in order"
_UNEVEN = (
    "removing some changes what the others give, or does not run: use operations that treat each channel alike, for "
    "any number of them"
)


def _joined(groups: list[Group], whole: dict[str, str], reader: _Reader) -> tuple[list[Group], dict[str, str]]:
    """Join what a grouped convolution reads and makes into one group, whose channels are groups of the convolution."""
    whole, joined = dict(whole), {group.name: group for group in groups}
    for layer, module in reader.modules.items():
        if not is_grouped(module):
            continue
        read = [g for g in joined.values() if any(c.layer == layer for c in g.consumers)]
        made = [g for g in joined.values() if layer in g.producers]
        try:
            both = _around(layer, module, read, made)
        except _Whole as reason:
            for group in (*read, *made):
                whole[group.name] = str(reason)
                joined.pop(group.name, None)
        else:
            for group in (*read, *made):
                joined.pop(group.name, None)
            joined[both.name] = reader.in_order(both)
    return sorted(joined.values(), key=lambda g: reader.order.index(g.name)), whole


def _around(layer: str, module: Any, read: list[Group], made: list[Group]) -> Group:
    """Describe the channels around a grouped convolution. Raises _Whole when they cannot go in whole groups of it."""
    if len(read) != 1 or len(made) != 1:
        raise _Whole(f"the grouped convolution {layer} reads or makes channels that stay: use groups=1")
    if made[0].output:
        raise _Whole(f"the grouped convolution {layer} makes the classes: use groups=1")
    place = next(consumer for consumer in read[0].consumers if consumer.layer == layer)
    if (place.offset, read[0].channels * place.taps) != (0, module.in_channels):
        raise _Whole(f"the grouped convolution {layer} reads a concatenation: use groups=1")
    units = math.gcd(module.groups, read[0].channels, made[0].channels)
    before, after = read[0].in_units(units), made[0].in_units(units)
    if before.name == after.name:
        after = replace(after, slices=(), producers=(), consumers=())
    return replace(
        before,
        slices=before.slices + after.slices,
        producers=before.producers + after.producers,
        consumers=tuple(c for c in before.consumers + after.consumers if c.layer != layer),
    )


def _dependency_graph(network: nn.Module, name: str, x: torch.Tensor) -> Any:
    """Build Torch-Pruning's graph without views of parameters, whose sizes it would take for channel numbers.

    It ends at operations that divide or reorder channels, which it cannot follow; these are its `obstacles`.
    """
    import torch_pruning

    class Graph(torch_pruning.DependencyGraph):
        obstacles: dict[Any, str]

        def _trace(self, *arguments: Any, **options: Any) -> Any:
            nodes = super()._trace(*arguments, **options)
            layers = set(network.modules())
            for node in nodes.values():
                node.inputs = [
                    n for n in node.inputs if n.inputs or n.module in layers or isinstance(n.module, nn.Parameter)
                ]
            self.obstacles = {}
            for node in nodes.values():
                if node.inputs and _divides(node):
                    self.obstacles[node.module] = _REORDERED
                    for following in node.outputs:
                        following.inputs = [n for n in following.inputs if n is not node]
                        if not mixes(following.module):
                            self.obstacles[following.module] = _REORDERED
                    node.outputs = []
            return nodes

    try:
        return Graph().build_dependency(network, [x], verbose=False)
    except Exception as error:  # the library raises whatever it stumbles over
        raise ModelError(f"{name} cannot be traced ({error!r}): avoid reshapes and splits of channels") from error


def _divides(node: Any) -> bool:
    """Tell whether an operation splits channels, or views them in another number of parts than a flatten does."""
    kind = type(node.module).__name__
    if kind in ("_SplitOp", "_UnbindOp", "_SliceOp"):
        return True
    if kind != "_ReshapeOp":
        return False
    before, after = node.grad_fn._saved_self_sym_sizes, node.grad_fn._input_metadata[0].shape
    return len(after) != 2 and tuple(before[:2]) != tuple(after[:2])
