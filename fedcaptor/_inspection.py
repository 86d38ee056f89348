"""What can be cut in a network: its channel groups, and what each layer costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedcaptor.common.data.source import load
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.torch_engine import registry
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.trace import trace


@dataclass(frozen=True, repr=False)
class Inspection:
    """A network's channel groups, which print as a table.

    Attributes:
        groups: The groups with their cost model; the last one is that of the classes.
    """

    groups: ChannelGroups

    @property
    def title(self) -> str:
        """The network's name and costs."""
        found = self.groups
        return f"{found.model}: {found.macs():,} MACs, {found.parameters():,} parameters"

    @property
    def rows(self) -> list[tuple[str, int, str, str]]:
        """Name, channels, producers and readers of each group, in the order of execution."""
        return [(g.name, g.channels, ", ".join(g.producers), _readers(g)) for g in self.groups.groups]

    def __repr__(self) -> str:
        cells = [("group", "channels", "producers", "read by"), *((n, str(c), p, r) for n, c, p, r in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])


def _readers(group: Group) -> str:
    return ", ".join(consumer.layer for consumer in group.consumers) or ("the classes" if group.output else "–")


def inspect(module: nn.Module, input_shape: tuple[int, int, int], name: str | None = None) -> Inspection:
    """Find out what must be cut together in a network, and show it.

    Args:
        module: Network from images [N, C, H, W] to scores [N, classes]; stays as it is.
        input_shape: (C, H, W) of an image.
        name: What the network is called; its class's name if left out.

    Returns:
        The channel groups; `print` shows them as a table.

    Raises:
        ModelError: A layer cannot be cut; the message names it and says what would do.

    Example:
        ```python
        print(fedcaptor.inspect(network, (3, 32, 32)))
        ```
    """
    still = (0.0,) * input_shape[0]
    return Inspection(BaseModel.of(module, name or type(module).__name__, input_shape, still, still).groups)


def inspect_files(model: str, weights: Path, source: str) -> Inspection:
    """Inspect a network in a file, for images as those of a data source."""
    _, height, width, channels = load(source).x.shape
    return Inspection(BaseModel.load(weights, model, (channels, height, width)).groups)


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
