"""The two sides of a masked sum, in every step: a phone gets any bytes for a request, the server any for a reply.

Whatever is refused changes nothing. Whatever reply the server takes, the sum that honest phones then end is that of the
survivors, or a declared error.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from fedcaptor.client.secure_sum.phone_sum import PhoneSum
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.secure.messages import MASKING, STEPS
from fedcaptor.server.secure_sum.server_sum import ServerSum
from tests.common.secure_cohort import Cohort, identity, random_vectors, stream, terms

NODE, PHONES, LENGTH = 0, 5, 3
TERMS = terms(PHONES, LENGTH, dropout=0.2)
VECTORS = random_vectors(PHONES, LENGTH)


@dataclass(frozen=True)
class Step:
    """The honest sum before a step: what each phone stores, the server, and `NODE`'s request and reply of this step."""

    stored: dict[int, bytes]
    server: ServerSum
    request: bytes
    reply: bytes

    def phone(self, node: int) -> PhoneSum:
        return PhoneSum(TERMS, identity(node), stream(f"later {node}"), stored=self.stored[node])

    def cohort(self) -> Cohort:
        """All phones and the server, to go on with."""
        cohort = Cohort(TERMS, VECTORS)
        cohort.server, cohort.phones = deepcopy(self.server), {node: self.phone(node) for node in self.stored}
        return cohort


def transcript() -> list[Step]:
    cohort, steps = Cohort(TERMS, VECTORS), []
    for _ in range(STEPS):
        server, stored = deepcopy(cohort.server), {node: phone.to_bytes() for node, phone in cohort.phones.items()}
        replies: dict[int, bytes] = {}
        cohort.on_reply = lambda step, node, data, replies=replies: replies.setdefault(node, data)
        cohort.step()
        steps.append(Step(stored, server, server.request(NODE), replies[NODE]))
    return steps


TRANSCRIPT = transcript()


def seeds() -> dict[str, bytes]:
    sides = [(step.request, step.reply) for step in TRANSCRIPT]
    return {
        f"{'server' if to_server else 'phone'}-{number}": bytes([number + STEPS * to_server]) + side[to_server]
        for number, side in enumerate(sides)
        for to_server in (False, True)
    }


def one(data: bytes) -> bool:
    number = data[0] % (2 * STEPS) if data else 0
    return (_server if number >= STEPS else _phone)(number % STEPS, data[1:])


def _phone(number: int, request: bytes) -> bool:
    step = TRANSCRIPT[number]
    phone = step.phone(NODE)
    try:
        phone.answer(request, lambda: VECTORS[NODE])
    except (PrivacyError, WireError):
        assert phone.to_bytes() == step.stored[NODE]
        return False
    return True


def _server(number: int, reply: bytes) -> bool:
    cohort = TRANSCRIPT[number].cohort()
    try:
        cohort.server.add(NODE, reply)
    except WireError:
        cohort.server.add(NODE, TRANSCRIPT[number].reply)
        return False
    try:
        total = cohort.run()
    except PrivacyError:
        return False
    finally:
        assert all(isinstance(error, PrivacyError | WireError) for error in cohort.declined.values())
    if number != MASKING or reply == TRANSCRIPT[number].reply:
        survivors = np.flatnonzero(cohort.server._arrived[[cohort.server._place[node] for node in range(PHONES)]])
        np.testing.assert_array_equal(total, cohort.sum_of(survivors))
    return True
