"""Secure sums beside plain ones and beside Flower's own SecAgg+ primitives, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, sweep
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.server.plain_sum import PlainAggregator

NOISE_MULTIPLIER = 4.0
RESOLUTION = 24.0
"""Standard deviation of one phone's noise, in quanta: as sums of real runs have it."""
_LINKED, _MASKED = 2, 3
_EVERY = 10
"""Every tenth phone's packing and key agreements are timed on their own, in between: the machine's pace changes."""
OnPhase = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """What all rows have in common."""

    length: int
    dropout: float
    corrupted: float
    flower_phones: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 0.5:
            raise ConfigError(f"--dropout is {self.dropout}, must lie in [0, 0.5)")

    def settings(self) -> dict[str, Any]:
        return {
            "corrupted": self.corrupted,
            "noise_multiplier": NOISE_MULTIPLIER,
            "seed": self.seed,
            "cryptography": version("cryptography"),
            "flower": version("flwr"),
        }

    def spec(self, phones: int) -> SumSpec:
        """The sum, with as few bits as it needs. Raises PrivacyError when 32 are too few."""
        survivors = phones - int(self.dropout * phones)
        scale = RESOLUTION * survivors**0.5 / NOISE_MULTIPLIER
        for bits in range(8, 33):
            try:
                return SumSpec(
                    "secure", self.length, 1.0, scale, NOISE_MULTIPLIER, phones, survivors, survivors, bits, True
                )
            except PrivacyError:
                if bits == 32:
                    raise
        raise AssertionError


@dataclass(eq=False)
class Fleet:
    """Phones of one sum: those numbered below `lost` are silent once their shares are with the others."""

    trial: Trial
    spec: SumSpec
    terms: Any
    lost: int
    on_phase: OnPhase
    phones: dict[int, Any] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    serialise: list[float] = field(default_factory=list)

    def vector(self, node: int) -> NDArray[np.uint32]:
        rng = np.random.default_rng((self.trial.seed, node))
        return rng.integers(0, 2**self.spec.bits, self.spec.length, dtype=np.uint32)

    def answer(self, step: int, node: int, request: bytes) -> bytes:
        """Processor seconds and bytes of each phone are counted; making its vector is not."""
        from fedcaptor.client.secure_sum.phone_sum import PhoneSum

        self.on_phase(f"step {step + 1} of 6", node, self.spec.cohort)
        if step >= _MASKED and node < self.lost:
            return b""
        if step == 0:
            self.phones[node] = PhoneSum(self.terms, Ed25519PrivateKey.generate())
        vector = self.vector(node) if step == _MASKED else None
        start = time.thread_time()
        reply: bytes = self.phones[node].answer(request, lambda: vector)
        self.seconds[node] = self.seconds.get(node, 0.0) + time.thread_time() - start
        if step == _LINKED and node % _EVERY == 0:
            self.serialise.append(serialise_seconds(self.vector(node), self.spec.bits, 2 * _neighbours(request)))
        self.down[node] = self.down.get(node, 0) + len(request)
        self.up[node] = self.up.get(node, 0) + len(reply)
        return reply

    def mean(self, figure: Mapping[int, float]) -> float:
        """Over phones that were never lost."""
        return fmean(value for node, value in figure.items() if node >= self.lost)


def measure(trial: Trial, key: Mapping[str, Any], on_phase: OnPhase = lambda name, done, total: None) -> dict[str, Any]:
    """Figures of one row."""
    from benchmarks import flower_secagg
    from benchmarks.secure_server import serve
    from fedcaptor.common.secure.terms import Terms

    phones, spec = key["phones"], trial.spec(key["phones"])
    fleet = Fleet(
        trial, spec, Terms.of(spec, spec.digest, trial.dropout, trial.corrupted), phones - spec.min_survivors, on_phase
    )
    served = serve(fleet.terms, phones, fleet.answer)
    figures, upload = served.figures, fleet.mean(fleet.up)
    plain, plain_seconds = _plain(fleet, spec)
    setting = flower_secagg.Setting(spec.length, spec.bits, figures["neighbours"], figures["threshold"])
    unshared = replace(setting, threshold=2)
    on_phase("Flower's primitives", 0, 1)
    flower = [flower_secagg.phone_seconds(setting) for _ in range(trial.flower_phones)]
    return {
        **figures,
        "bits_per_entry": spec.bits,
        "download_bytes": fleet.mean(fleet.down),
        "upload_bytes": upload,
        "expansion": upload / (spec.length * spec.bits / 8),
        "exact": bool((served.result == plain).all()),
        "phone_ms": 1e3 * fleet.mean(fleet.seconds),
        "serialise_ms": 1e3 * fmean(fleet.serialise),
        "plain_server_seconds": plain_seconds,
        "flower_phone_ms": 1e3 * fmean(flower),
        "flower_phones_timed": len(flower),
        "flower_server_seconds": flower_secagg.server_seconds(setting, phones - fleet.lost, fleet.lost),
        "flower_phone_unshared_ms": 1e3 * flower_secagg.phone_seconds(unshared),
        "flower_server_unshared_seconds": flower_secagg.server_seconds(unshared, phones - fleet.lost, fleet.lost),
    }


def _plain(fleet: Fleet, spec: SumSpec) -> tuple[NDArray[np.uint32], float]:
    """The plain sum of the same survivors, modulo 2**bits, and its processor seconds."""
    aggregator, seconds = PlainAggregator(spec), 0.0
    for node in range(fleet.lost, spec.cohort):
        vector = fleet.vector(node)
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
    """Packing the vector and so many key agreements, with nothing else."""
    from fedcaptor.common.secure.keys import Agreement, public_of
    from fedcaptor.common.secure.packing import pack

    own, public = Agreement(bytes(range(32))), public_of(bytes(range(1, 33)))
    start = clock()
    pack(vector, bits)
    for _ in range(agreements):
        own.secret(public)
    return clock() - start


def _neighbours(request: bytes) -> int:
    from fedcaptor.common.secure.messages import Neighbours

    return len(Neighbours.from_bytes(request, request[2:]).places)


def command(
    file: File,
    phones: Annotated[str, typer.Option(help="Sizes of cohorts, separated by commas.")] = "1000",
    length: Annotated[int, typer.Option(min=1, help="Entries of a vector.")] = 42_240,
    dropout: Annotated[float, typer.Option(help="Share of the phones that is lost before it sends its vector.")] = 0.2,
    corrupted: Annotated[float, typer.Option(help="Share of the phones that may side with the server.")] = 0.05,
    flower_phones: Annotated[int, typer.Option(min=1, help="Phones that Flower's primitives are timed for.")] = 1,
    seed: Annotated[int, typer.Option(help="Vectors follow from it; keys are the operating system's.")] = 0,
    fresh: Fresh = False,
) -> None:
    """Seconds, bytes and memory of a secure sum, against the plain sum and Flower's SecAgg+ primitives in the same run.

    Every phone of ours runs all its steps, one after another; Flower's primitives are timed for a few phones, one
    survivor and one dropped phone, and scaled. A thousand phones take about three minutes.

    Example: python -m benchmarks secure_sum --phones 1000 --json benchmarks/results/secure_sum.json
    """
    trial = Trial(length, dropout, corrupted, flower_phones, seed)
    options: dict[str, str | int | float | None] = {
        "phones": phones,
        "length": length,
        "dropout": dropout,
        "corrupted": corrupted,
        "flower_phones": flower_phones,
        "seed": seed,
    }
    record = open_record(file, "secure_sum", trial.settings(), command_line("secure_sum", file, **options), fresh)
    with bars("secure sum") as (on_row, on_phase):
        keys = [{"phones": count, "length": length, "dropout": dropout} for count in numbers(phones)]
        sweep(record, file, keys, lambda key: measure(trial, key, on_phase), on_row)
