"""DP-FedAvg of a network's output layer over a fleet, without running a phone.

Only the output layer moves, so a phone's update is a sum over its photos of (what is wanted − what is answered) ⊗ (what
the layer reads). Phones hold few distinct photos between them: the sum of all clipped updates is a weighted sum over
distinct photos, and a clipped phone's norm follows from products of its own photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.softmax import softmax

CHUNK = 500  # phones whose products are at hand at a time
Flags = npt.NDArray[np.bool_]
Single = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Held:
    """What a fleet's phones hold and know of it.

    Attributes:
        photos: Numbers of each phone's photos [N, images] among the U distinct ones, -1 for none.
        known: Whether the phone knows the label of each of these [N, images].
        inputs: What the output layer reads of each distinct photo [U, K].
        logits: What the shipped network answers to it [U, C].
        labels: Its class [U], which counts where it is known.
        blocks: The number of the layer that answers it [U]: phones of one look share a layer.
    """

    photos: Indices
    known: Flags
    inputs: Single
    logits: Single
    labels: Indices
    blocks: Indices

    @cached_property
    def products(self) -> Single:
        """Return the products of a phone's inputs with one another [N, images, images]."""
        found = [rows @ rows.transpose(0, 2, 1) for rows in (self.inputs[part] for part in _chunks(self.photos))]
        return np.concatenate(found)


@dataclass(frozen=True)
class Descent:
    """How the server and its phones train.

    Attributes:
        rounds: Masked sums, each with an update of every phone.
        rate: What the server multiplies the mean update by.
        clip: Joint L2 norm of a phone's update at most.
        agreed: Weight of a photo whose answer nobody corrected, beside 1 of one whose label is known: its target is
            the shipped network's own answer, which holds the layer where nothing is known.
        multiplier: Standard deviation of a sum's noise, in units of `clip`.
    """

    rounds: int
    rate: float
    clip: float
    agreed: float
    multiplier: float


@dataclass(frozen=True, eq=False)
class Trained:
    """What is added to each layer [B, C, K], and L2 norms of the first mean update and of a mean update's noise."""

    change: Floats
    signal: float
    noise: float


def train(held: Held, descent: Descent, rng: np.random.Generator) -> Trained:
    """Return what the rounds make of the output layers."""
    shape = int(held.blocks.max()) + 1, held.logits.shape[1], held.inputs.shape[1]
    change, phones, signal = np.zeros(shape), len(held.photos), 0.0
    deviation = descent.multiplier * descent.clip
    for round in range(descent.rounds):
        total = sum_of_updates(held, change, descent)
        signal = signal if round else float(np.linalg.norm(total)) / phones
        change += descent.rate * (total + rng.normal(0, deviation, shape)) / phones
    return Trained(change, signal, deviation * float(np.sqrt(change.size)) / phones)


def sum_of_updates(held: Held, change: Floats, descent: Descent) -> Floats:
    """Return the sum of all phones' clipped updates [B, C, K]."""
    answered = softmax(answers(held.logits, held.inputs, held.blocks, change))
    corrected = (np.eye(answered.shape[1])[held.labels] - answered).astype(np.float32)
    agreed = (softmax(held.logits) - answered).astype(np.float32)
    there = held.photos >= 0
    weights = np.stack([there & held.known, descent.agreed * (there & ~held.known)], axis=-1).astype(np.float32)
    rows = np.zeros((len(held.inputs), 2))  # weights of each distinct photo over all phones: known, agreed
    for start, part in zip(range(0, len(held.photos), CHUNK), _chunks(held.photos), strict=True):
        weight = weights[start : start + CHUNK]
        errors = corrected[part] * weight[..., :1] + agreed[part] * weight[..., 1:]
        squares = (errors @ errors.transpose(0, 2, 1) * held.products[start : start + CHUNK]).sum((1, 2))
        clipped = descent.clip / np.maximum(np.sqrt(np.maximum(squares, 0)), descent.clip)
        np.add.at(rows, part, weight * clipped[:, None, None])
    errors = rows[:, :1] * corrected + rows[:, 1:] * agreed
    blocks = (held.blocks == block for block in range(len(change)))
    return np.stack([errors[own].T @ held.inputs[own] for own in blocks])


def answers(logits: Single, inputs: Single, blocks: Indices, change: Floats) -> Floats:
    """Return what the changed layers answer [U, C]."""
    changed = logits.astype(np.float64)
    for block, layer in enumerate(change):
        own = blocks == block
        changed[own] += inputs[own] @ layer.T
    return changed


def _chunks(photos: Indices) -> list[Indices]:
    return [photos[start : start + CHUNK] for start in range(0, len(photos), CHUNK)]
