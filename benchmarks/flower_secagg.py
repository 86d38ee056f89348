"""Flower's own SecAgg+ primitives (`flwr.common.secure_aggregation`), called as its client mod and its workflow do.

Quantisation, records and logs are left out. The graph is Flower's: as many masks a phone as holders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from numpy.typing import NDArray

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Parameters:
    """`neighbours` holders and masks of a phone; `threshold` of the shares open a secret."""

    length: int
    bits: int
    neighbours: int
    threshold: int

    def mask(self, seed: bytes) -> Arrays:
        return pseudo_rand_gen(seed, 1 << self.bits, [(self.length,)])


def _keys() -> tuple[bytes, bytes]:
    private, public = generate_key_pairs()
    return private_key_to_bytes(private), public_key_to_bytes(public)


def phone_seconds(parameters: Parameters, clock: Callable[[], float] = time.process_time) -> float:
    """Processor seconds of one phone in all stages; its neighbours' keys are made before the clock starts."""
    others = [_keys()[1] for _ in range(parameters.neighbours)]
    vector: Arrays = [np.zeros(parameters.length, np.int64)]
    start = clock()
    (sk1, _), (sk2, _), seed = _keys(), _keys(), os.urandom(32)
    seed_shares = create_shares(seed, parameters.threshold, parameters.neighbours)
    key_shares = create_shares(sk1, parameters.threshold, parameters.neighbours)
    sent = []
    for number, other in enumerate(others):
        shared = generate_shared_key(bytes_to_private_key(sk2), bytes_to_public_key(other))
        text = share_keys_plaintext_concat(0, number, seed_shares[number], key_shares[number])
        sent.append((shared, encrypt(shared, text)))
    for shared, text in sent:  # as many of the same size come from the neighbours
        share_keys_plaintext_separate(decrypt(shared, text))
    vector = parameters_addition(vector, parameters.mask(seed))
    for other in others:
        shared = generate_shared_key(bytes_to_private_key(sk1), bytes_to_public_key(other))
        vector = parameters_addition(vector, parameters.mask(shared))
    parameters_mod(vector, 1 << parameters.bits)
    return clock() - start


def server_seconds(
    parameters: Parameters, survivors: int, dropped: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Processor seconds of adding up and unmasking, scaled from one survivor and one dropped phone."""
    other, total = _keys()[1], [np.zeros(parameters.length, np.int64)]
    private, seed = _keys()[0], os.urandom(32)
    shares = {secret: create_shares(secret, parameters.threshold, parameters.neighbours) for secret in (private, seed)}
    start = clock()
    total = parameters_addition(total, total)
    total = parameters_subtraction(total, parameters.mask(combine_shares(shares[seed][: parameters.threshold])))
    survived = clock()
    secret = combine_shares(shares[private][: parameters.threshold])
    for _ in range(parameters.neighbours):  # Flower takes off the masks with dropped neighbours too
        shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(other))
        total = parameters_subtraction(total, parameters.mask(shared))
    return survivors * (survived - start) + dropped * (clock() - survived)
