"""What can be cut in a network: its channel groups, what each layer costs, and what stays whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fedcaptor.common.data.source import load
from fedcaptor.common.energy import Energy, layer_energies
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.torch_engine import registry
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.latency import layer_seconds
from fedcaptor.common.torch_engine.trace import trace


@dataclass(frozen=True)
class LayerCost:
    """What one convolution or linear layer costs.

    Attributes:
        layer: Its name; `(others)` for norms and all else that has tensors.
        macs: Multiply-accumulates of one image.
        share_of_macs: That over the network's; all layers' add up to 1.
        parameters: Stored values.
        share_of_energy: Modelled energy over the network's (`common/energy.py`); all layers' add up to 1.
        milliseconds: Of one image, with what follows until the next layer; None if it was not measured.
    """

    layer: str
    macs: int
    share_of_macs: float
    parameters: int
    share_of_energy: float
    milliseconds: float | None = None


@dataclass(frozen=True, repr=False)
class Inspection:
    """A network's channel groups and what its layers cost, which print as tables.

    Attributes:
        groups: The groups with their cost model; the last one is that of the classes.
        seconds: Measured seconds of one image by layer; empty if they were not measured.
    """

    groups: ChannelGroups
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The network's name and costs."""
        found = self.groups
        return f"{found.model}: {found.macs():,} MACs, {found.parameters():,} parameters"

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, channels, producers and readers of each group, in the order of execution.

        Channels around a grouped convolution are "groups × channels of a group".
        """
        return [(g.name, _channels(g), ", ".join(g.producers), _readers(g)) for g in self.groups.groups]

    @property
    def layers(self) -> list[LayerCost]:
        """Costs of each layer in the order of execution; parameters of norms and the like are in a last row."""
        found, total, energies = self.groups, self.groups.macs(), layer_energies(self.groups)
        macs: dict[str, int] = {}
        for layer in found.layers:  # behind a concatenation one entry for each group
            macs[layer.name] = macs.get(layer.name, 0) + found.layer_macs(layer, {})
        sizes = {name: math.prod(shape) for name, shape in found.tensors.items() if shape}
        own = {name: sum(sizes.get(f"{name}.{key}", 0) for key in ("weight", "bias")) for name in macs}
        whole = sum(energies.values(), Energy()).total
        rows = [
            LayerCost(
                name,
                count,
                count / total,
                own[name],
                energies[name].total / whole,
                1000 * self.seconds[name] if self.seconds else None,
            )
            for name, count in macs.items()
        ]
        rest = sum(sizes.values()) - sum(own.values())
        return [*rows, LayerCost("(others)", 0, 0.0, rest, 0.0)] if rest else rows

    @property
    def cost_rows(self) -> list[tuple[str, ...]]:
        """`layers` as words under `cost_columns`."""
        times = [f"{row.milliseconds:.3f}" if row.milliseconds is not None else "–" for row in self.layers]
        rows = [
            (
                row.layer,
                f"{row.macs:,}",
                f"{row.share_of_macs:.1%}",
                f"{row.parameters:,}",
                f"{row.share_of_energy:.1%}",
            )
            for row in self.layers
        ]
        return [(*row, time) if self.seconds else row for row, time in zip(rows, times, strict=True)]

    @property
    def cost_columns(self) -> tuple[str, ...]:
        """Headings of `cost_rows`."""
        return ("layer", "MACs", "share of MACs", "parameters", "of energy", *(["ms"] if self.seconds else []))

    @property
    def kept_whole(self) -> list[str]:
        """Channels that pruning never removes, with the reason, one line each."""
        return self.groups.kept_whole

    def record(self) -> dict[str, Any]:
        """All of it in types of JSON, without values that JSON lacks: a rectifier without a bound is "unbounded"."""
        found: dict[str, Any] = json.loads(self.groups.to_json())
        for consumer in (consumer for group in found["groups"] for consumer in group["consumers"]):
            if consumer["rectified"] == math.inf:
                consumer["rectified"] = "unbounded"
        costs = {
            "macs": self.groups.macs(),
            "parameters": self.groups.parameters(),
            "costs": [asdict(row) for row in self.layers],
        }
        return found | costs | {"kept_whole": dict(self.groups.whole)}

    def __repr__(self) -> str:
        groups = [("group", "channels", "producers", "read by"), *self.rows]
        tables = [_aligned(groups), _aligned([self.cost_columns, *self.cost_rows])]
        return "\n".join([self.title, *tables, *(f"prune keeps {line}" for line in self.kept_whole)])


def _aligned(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def _channels(group: Group) -> str:
    return f"{group.channels} × {group.width}" if group.width > 1 else str(group.channels)


def _readers(group: Group) -> str:
    return ", ".join(consumer.layer for consumer in group.consumers) or ("the classes" if group.output else "–")


def inspect(
    module: nn.Module, input_shape: tuple[int, int, int], name: str | None = None, *, latency: bool = False
) -> Inspection:
    """Find out what must be cut together in a network, what its layers cost and what pruning keeps whole, and show it.

    Args:
        module: Network from images [N, C, H, W] to scores [N, classes]; stays as it is.
        input_shape: (C, H, W) of an image.
        name: What the network is called; its class's name if left out.
        latency: Measure each layer's time on this machine, with one image on one thread.

    Returns:
        The channel groups and costs; `print` shows them as tables.

    Raises:
        ModelError: No channel can be cut; the message names the layers and says what would do.

    Example:
        ```python
        print(fedcaptor.inspect(network, (3, 32, 32)))
        ```
    """
    still = (0.0,) * input_shape[0]
    return _inspection(BaseModel.of(module, name or type(module).__name__, input_shape, still, still), latency)


def inspect_files(model: str, weights: Path | None, source: str, latency: bool = False) -> Inspection:
    """Inspect a network in a file, or one that is not trained yet, for images as those of a data source."""
    data = load(source)
    _, height, width, channels = data.x.shape
    shape = (channels, height, width)
    if weights is None:
        return inspect(registry.build(model, len(data.names), shape), shape, model, latency=latency)
    return _inspection(BaseModel.load(weights, model, shape), latency)


def _inspection(base: BaseModel, latency: bool) -> Inspection:
    return Inspection(base.groups, layer_seconds(base.module, base.groups) if latency else {})


def registered(chosen: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Figures of registered networks, all where none is `chosen`, each at the size that it was designed for."""
    return [_about(name, *registry.made_for(name)) for name in chosen or registry.names()]


def _about(name: str, classes: int, input_shape: tuple[int, int, int]) -> dict[str, Any]:
    """`prunable`: channels by group."""
    groups = trace(registry.build(name, classes, input_shape), name, input_shape)
    return {
        "name": name,
        "classes": classes,
        "input_shape": input_shape,
        "parameters": groups.parameters(),
        "macs": groups.macs(),
        "prunable": {group.name: group.channels for group in groups.prunable},
    }
