"""The fleet's modelled energy from private sums, which tell MACs and parameters of the phones' models alone."""

from __future__ import annotations

from fedcaptor.common.energy import energy
from fedcaptor.common.groups import ChannelGroups


def energy_weights(groups: ChannelGroups) -> dict[str, float]:
    """Return the weights of outcome figures that give the energy ratio of `fedcaptor.common.energy`, or a little more.

    Maps shrink as channels do, MACs as their square. No sum has a phone's channels, so maps count by the mean of 1 and
    the MACs ratio, which is at least its root. An escalated image also costs the full model; where another model
    answers it, or none, that is an upper bound.
    """
    full = energy(groups)
    return {
        "macs": (full.computing + full.maps / 2) / full.total,
        "parameters": full.weights / full.total,
        "phones": full.maps / 2 / full.total,
        "escalated": 1.0,
    }
