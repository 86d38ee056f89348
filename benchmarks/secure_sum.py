"""Secure sums beside plain ones and beside Flower's own SecAgg+ primitives, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from typer import Option

from benchmarks import flower_secagg
from benchmarks.command import SHARED, Benchmark
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from benchmarks.secure_server import serve_in_process
from fedcaptor.client.secure_sum.phone_sum import PhoneSum
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.secure.keys import Agreement, public_of
from fedcaptor.common.secure.messages import Neighbours
from fedcaptor.common.secure.packing import pack
from fedcaptor.common.secure.terms import Terms
from fedcaptor.server.plain_sum import PlainAggregator

NOISE_MULTIPLIER = 4.0
RESOLUTION = 24.0
"""Standard deviation of one phone's noise, in quanta: as sums of real runs have it."""
_LINKED, _MASKED = 2, 3
_EVERY = 10
"""Every tenth phone's packing and key agreements are timed on their own, in between: the machine's pace changes."""


@dataclass(frozen=True, kw_only=True)
class SecureSum(Benchmark):
    """Seconds, bytes and memory of a secure sum, against the plain sum and Flower's SecAgg+ primitives in the same run.

    Every phone of ours runs all its steps, one after another; Flower's primitives are timed for a few phones, one
    survivor and one dropped phone, and scaled. A thousand phones take about three minutes.

    Example: python -m benchmarks secure_sum --phones 1000 --json benchmarks/results/secure_sum.json
    """

    phones: Annotated[str, Option(help="Sizes of cohorts, separated by commas.")] = "1000"
    length: Annotated[int, Option(min=1, help="Entries of a vector.")] = 42_240
    dropout: Annotated[float, Option(help="Share of the phones that is lost before it sends its vector.")] = 0.2
    corrupted: Annotated[float, Option(help="Share of the phones that may side with the server."), SHARED] = 0.05
    flower_phones: Annotated[int, Option(min=1, help="Phones that Flower's primitives are timed for.")] = 1
    seed: Annotated[int, Option(help="Vectors follow from it; keys are the operating system's."), SHARED] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 0.5:
            raise ConfigError(f"--dropout is {self.dropout}, must lie in [0, 0.5)")

    def shared(self) -> dict[str, Any]:
        libraries = {"cryptography": version("cryptography"), "flower": version("flwr")}
        return {**super().shared(), "noise_multiplier": NOISE_MULTIPLIER, **libraries}

    def row_keys(self) -> list[Row]:
        sizes = numbers(self.phones)
        return [{"phones": count, "length": self.length, "dropout": self.dropout} for count in sizes]

    def spec(self, phones: int) -> SumSpec:
        """Return the sum, with as few bits as it needs. Raises PrivacyError when 32 are too few."""
        survivors = phones - int(self.dropout * phones)
        scale = RESOLUTION * survivors**0.5 / NOISE_MULTIPLIER
        least = ("secure", self.length, 1.0, scale, NOISE_MULTIPLIER, phones, survivors, survivors)
        for bits in range(8, 32):
            try:
                return SumSpec(*least, bits, True)
            except PrivacyError:
                continue
        return SumSpec(*least, 32, True)

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return the figures of one row."""
        count, spec = key["phones"], self.spec(key["phones"])
        terms = Terms.of(spec, spec.digest, self.dropout, self.corrupted)
        phones = Phones(self.seed, spec, terms, count - spec.min_survivors, on_phase)
        served = serve_in_process(terms, count, phones.answer)
        figures, upload = served.figures, phones.mean(phones.up)
        plain, plain_seconds = _plain(phones, spec)
        parameters = flower_secagg.Parameters(spec.length, spec.bits, figures["neighbours"], figures["threshold"])
        unshared = replace(parameters, threshold=2)
        on_phase("Flower's primitives", 0, 1)
        flower = [flower_secagg.phone_seconds(parameters) for _ in range(self.flower_phones)]
        return {
            **figures,
            "bits_per_entry": spec.bits,
            "download_bytes": phones.mean(phones.down),
            "upload_bytes": upload,
            "expansion": upload / (spec.length * spec.bits / 8),
            "exact": bool((served.result == plain).all()),
            "phone_ms": 1e3 * phones.mean(phones.seconds),
            "serialise_ms": 1e3 * fmean(phones.serialise),
            "plain_server_seconds": plain_seconds,
            "flower_phone_ms": 1e3 * fmean(flower),
            "flower_phones_timed": len(flower),
            "flower_server_seconds": flower_secagg.server_seconds(parameters, count - phones.lost, phones.lost),
            "flower_phone_unshared_ms": 1e3 * flower_secagg.phone_seconds(unshared),
            "flower_server_unshared_seconds": flower_secagg.server_seconds(unshared, count - phones.lost, phones.lost),
        }


@dataclass(eq=False)
class Phones:
    """The phones of one sum: those numbered below `lost` are silent once their shares are with the others."""

    seed: int
    spec: SumSpec
    terms: Terms
    lost: int
    on_phase: OnPhase
    phones: dict[int, PhoneSum] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    serialise: list[float] = field(default_factory=list)

    def vector(self, node: int) -> NDArray[np.uint32]:
        rng = np.random.default_rng((self.seed, node))
        return rng.integers(0, 2**self.spec.bits, self.spec.length, dtype=np.uint32)

    def answer(self, step: int, node: int, request: bytes) -> bytes:
        """Answer the server; processor seconds and bytes of each phone are counted, making its vector is not."""
        self.on_phase(f"step {step + 1} of 6", node, self.spec.cohort)
        if step >= _MASKED and node < self.lost:
            return b""
        if step == 0:
            self.phones[node] = PhoneSum(self.terms, Ed25519PrivateKey.generate())
        vector = self.vector(node) if step == _MASKED else np.empty(0, np.uint32)
        start = time.thread_time()
        reply: bytes = self.phones[node].answer(request, lambda: vector)
        self.seconds[node] = self.seconds.get(node, 0.0) + time.thread_time() - start
        if step == _LINKED and node % _EVERY == 0:
            neighbours = len(Neighbours.from_bytes(request, request[2:]).places)
            self.serialise.append(serialise_seconds(self.vector(node), self.spec.bits, 2 * neighbours))
        self.down[node] = self.down.get(node, 0) + len(request)
        self.up[node] = self.up.get(node, 0) + len(reply)
        return reply

    def mean(self, figure: Mapping[int, float]) -> float:
        """Return the mean over phones that were never lost."""
        return fmean(value for node, value in figure.items() if node >= self.lost)


def _plain(phones: Phones, spec: SumSpec) -> tuple[NDArray[np.uint32], float]:
    """Return the plain sum of the same survivors, modulo 2**bits, and its processor seconds."""
    aggregator, seconds = PlainAggregator(spec), 0.0
    for node in range(phones.lost, spec.cohort):
        vector = phones.vector(node)
        start = time.process_time()
        aggregator.add(vector)
        seconds += time.process_time() - start
    start = time.process_time()
    total = np.round(aggregator.finish() * spec.scale).astype(np.int64)
    seconds += time.process_time() - start
    return (total & (2**spec.bits - 1)).astype(np.uint32), seconds


def serialise_seconds(
    vector: NDArray[np.uint32], bits: int, agreements: int, clock: Callable[[], float] = time.thread_time
) -> float:
    """Time packing the vector and so many key agreements, with nothing else."""
    own, public = Agreement(bytes(range(32))), public_of(bytes(range(1, 33)))
    start = clock()
    pack(vector, bits)
    for _ in range(agreements):
        own.secret(public)
    return clock() - start
