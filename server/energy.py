"""Modelled energy of a phone's answers, as a ratio of the full model's. It is a model, no measurement.

Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, gives for 45 nm: 3.7 pJ for a 32-bit
floating-point multiplication, 0.9 pJ for an addition, about 640 pJ for 32 bits from DRAM. An image costs its MACs and
every weight once from DRAM; activations, caches and what a device draws besides are left out.
"""

from __future__ import annotations

from fedcaptor.common.groups import ChannelGroups

MODEL = "Horowitz, ISSCC 2014: arithmetic and weights from DRAM"
MAC_PICOJOULE = 3.7 + 0.9
WEIGHT_PICOJOULE = 640.0


def energy_weights(groups: ChannelGroups) -> dict[str, float]:
    """Return the weights of outcome figures that give the energy ratio: an escalated image also costs the full model.

    Where another model answers those images, or none, that is an upper bound.
    """
    arithmetic, memory = groups.macs() * MAC_PICOJOULE, groups.parameters() * WEIGHT_PICOJOULE
    whole = arithmetic + memory
    return {"macs": arithmetic / whole, "parameters": memory / whole, "escalated": 1.0}
