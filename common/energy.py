"""Modelled energy of a network, by what it computes and what it moves: a model, no measurement, for ratios alone.

As in Yang, Chen & Sze, "Designing Energy-Efficient CNNs using Energy-Aware Pruning" (CVPR 2017) a layer's energy is
that of its MACs and of what it reads and writes at each level of memory. How often it does follows from the analysis of
the row-stationary dataflow in Chen, Emer & Sze, "Eyeriss" (ISCA 2016), whose energies, relative to one MAC, are used.
For each image all weights, and the maps between layers, cross the chip's border once, uncompressed and in 16 bits.
Norms, activations, pools and sums are left out, and so is what a device draws besides: display, radio, idle power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedcaptor.common.groups import ChannelGroups, Layer

MODEL = "Yang, Chen & Sze, CVPR 2017, with the energies of Eyeriss, ISCA 2016"
MAC, REGISTER, ARRAY, BUFFER, DRAM = 1.0, 1.0, 2.0, 6.0, 200.0
"""Energies of a MAC and of an access: in a processing element, between two, in the global buffer, off the chip."""

FILTERS, CHANNELS = 16, 4
"""What an element works on at a time: 16 × 4 rows of three weights fit into its 224 registers for weights."""


@dataclass(frozen=True)
class Energy:
    """Hold energies of one image in units of a MAC, by what they grow with.

    Attributes:
        computing: MACs, and what is moved on the chip, nearly in proportion to them.
        weights: Reading the weights from off the chip.
        maps: Reading and writing the maps between layers off the chip.
    """

    computing: float = 0.0
    weights: float = 0.0
    maps: float = 0.0

    @property
    def total(self) -> float:
        """Add the parts up."""
        return self.computing + self.weights + self.maps

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.computing + other.computing, self.weights + other.weights, self.maps + other.maps)


def layer_energies(groups: ChannelGroups, kept: Mapping[str, int] | None = None) -> dict[str, Energy]:
    """Model the energy of each layer by name; `kept`: channels by group, absent = all."""
    found: dict[str, Energy] = {}
    written: set[tuple[str, str | None]] = set()
    for layer in groups.layers:  # behind a concatenation one entry for each group that is read
        first = (layer.name, layer.outputs) not in written
        written.add((layer.name, layer.outputs))
        found[layer.name] = found.get(layer.name, Energy()) + _energy(groups, layer, kept or {}, first)
    return found


def energy(groups: ChannelGroups, kept: Mapping[str, int] | None = None) -> Energy:
    """Model the energy of one image; `kept`: channels by group, absent = all."""
    return sum(layer_energies(groups, kept).values(), Energy())


def energy_ratio(groups: ChannelGroups, kept: Mapping[str, int]) -> float:
    """Divide the modelled energy of `kept` channels (absent = all) by that of the full network."""
    return energy(groups, kept).total / energy(groups).total


def _energy(groups: ChannelGroups, layer: Layer, kept: Mapping[str, int], writes: bool) -> Energy:
    """Model one layer. Strides and padding are not known here: of each input channel as many values count as the
    layer's output has positions. `writes`: whether its outputs are not counted elsewhere.

    A value that is used a·b·c·d times is read a times from off the chip, a·b times from the buffer, a·b·c times over
    the array and a·b·c·d times from registers, with a = 1; sums are likewise written and read again (ISCA 2016, V-B).
    """
    outputs = layer.out_taps * (kept.get(layer.outputs, layer.full_outputs) if layer.outputs else layer.full_outputs)
    inputs = layer.in_taps * (kept.get(layer.inputs, layer.full_inputs) if layer.inputs else layer.full_inputs)
    shape = groups.tensors[f"{layer.name}.weight"]
    side = shape[-1] if len(shape) > 2 else 1
    deep = layer.kernel // math.prod(shape[2:]) if layer.depthwise else inputs  # channels that an output adds up
    readers = deep if layer.depthwise else outputs  # filters that an input is read by: as many in a group as it reads
    read, made = layer.positions * (outputs if layer.depthwise else inputs), layer.positions * outputs
    macs, weights = groups.layer_macs(layer, kept), groups.layer_macs(layer, kept) / layer.positions
    rows = math.sqrt(layer.positions)
    of_weights = BUFFER + ARRAY * rows
    passes = max(readers / FILTERS, 1.0)
    of_inputs = passes * (BUFFER + ARRAY * side)
    sums = max(deep / CHANNELS, 1.0)
    of_sums = 2 * BUFFER * (sums - 1) + ARRAY * sums * (side - 1)
    computing = (MAC + 4 * REGISTER) * macs  # registers: weight, input, and the sum read and written
    computing += of_weights * weights + of_inputs * read + of_sums * made
    return Energy(computing, DRAM * weights, DRAM * (read + (made if writes else 0)))
