"""Pack a plan into bits, as it travels and is stored: all plans of a network have one size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcaptor.common.arrays import Array, Bits
from fedcaptor.common.groups import ChannelGroups


def pack_plan(kept: Mapping[str, Array], groups: ChannelGroups) -> Bits:
    """Pack one bit for each channel of each group, the output layer's classes included: uint8 [⌈channels / 8⌉].

    `kept` maps a group's name to its kept channels; a group that is absent keeps all.
    """
    bits = [np.isin(np.arange(g.channels), kept.get(g.name, np.arange(g.channels))) for g in groups.groups]
    return np.packbits(np.concatenate(bits))


def unpack_plan(packed: Array, groups: ChannelGroups) -> dict[str, Array]:
    """Return the kept channels by group that `pack_plan` packed. Raises ValueError on fewer bits than channels."""
    channels = [g.channels for g in groups.groups]
    bits = np.unpackbits(packed, count=sum(channels)).astype(bool)
    parts = np.split(bits, np.cumsum(channels)[:-1])
    return {g.name: np.flatnonzero(part) for g, part in zip(groups.groups, parts, strict=True)}
