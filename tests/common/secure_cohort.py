"""A cohort of phones and a server in one process, for tests of secure sums."""

import hashlib

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.client.secure_sum.phone_sum import PhoneSum
from fedcaptor.common.secure.messages import STEPS
from fedcaptor.common.secure.terms import Terms
from fedcaptor.server.secure_sum.server_sum import ServerSum

DIGEST = "0f" * 32


def terms(phones, length=5, bits=16, survivors=None, digest=DIGEST, dropout=0.25, corrupted=0.0):
    fewest = survivors or max(2, phones // 2)
    return Terms(digest, length, bits, phones, min(fewest, phones), fewest, dropout, corrupted)


def stream(name):
    """A source of bytes that a test can repeat: SHA-256 of name and counter."""
    counter = 0

    def random(count):
        nonlocal counter
        data = b""
        while len(data) < count:
            data += hashlib.sha256(f"{name}/{counter}".encode()).digest()
            counter += 1
        return data[:count]

    return random


def identity(node):
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"identity {node}".encode()).digest())


class Cohort:
    """Node i's vector is row i. `lost(step, node)`: whether a phone is silent from that step on. `on_request` and
    `on_reply` may change what is on the way; None loses it.
    """

    def __init__(self, terms, vectors, enrolled=None):
        self.terms, self.vectors = terms, np.asarray(vectors, np.uint32)
        self.phones = {
            node: PhoneSum(terms, identity(node), stream(f"phone {node}"), enrolled) for node in range(len(vectors))
        }
        self.server = ServerSum(terms, list(self.phones))
        self.lost = lambda step, node: False
        self.on_request = self.on_reply = lambda step, node, data: data
        self.declined = {}

    def ask(self, node, request):
        return self.phones[node].answer(request, lambda: self.vectors[node])

    def step(self):
        step = self.server.step
        for node in sorted(self.server.waiting):
            if self.lost(step, node):
                continue
            try:
                reply = self.ask(node, self.on_request(step, node, self.server.request(node)))
            except Exception as error:  # what it was is the test's to judge
                self.declined[node] = error
                continue
            if (reply := self.on_reply(step, node, reply)) is not None:
                self.server.add(node, reply)
        self.server.advance()

    def until(self, step):
        while self.server.step < step:
            self.step()
        return self

    def run(self):
        return self.until(STEPS).server.result()

    def sum_of(self, nodes):
        total = sum(self.vectors[node].astype(np.uint64) for node in nodes)
        return (total & np.uint64(2**self.terms.bits - 1)).astype(np.uint32)


def random_vectors(phones, length=5, bits=16, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, (phones, length), dtype=np.uint32)
