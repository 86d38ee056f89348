"""Phones as devices have them, with an engine whose work can be counted, and the requests of a malicious server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcaptor.client.learner import Learner
from fedcaptor.client.phone import Phone
from fedcaptor.common.arrays import Images
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.data import mosaic
from fedcaptor.common.messages import DeliverRequest, MaskedRequest, SumFields, digest_of
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.server.secure_sum.server_sum import ServerSum
from tests.client.fake_engine import CLASSES, FakeEngine, pictures

COHORT = 24
SPEC = SumSpec("1-usage-0", 6, 1.0, 1024.0, 6.0, cohort=COHORT, min_survivors=22, min_cohort=20)


def photos(*labels: int) -> Images:
    """Pictures uint8 [N, 4, 4, 1] of the fake engine's network, whose logits are in the first row."""
    return np.pad(pictures(*labels), ((0, 0), (0, 3), (0, 0), (0, 0)))


class CountingEngine(FakeEngine):
    """Counts the images that it looks at."""

    looked = 0

    def scores(self, images: Images) -> Any:
        CountingEngine.looked += len(images)
        return super().scores(images)


@dataclass
class Owner:
    """The same images of one class every day."""

    label: int
    count: int = 12
    days: list[int] = field(default_factory=list)

    def use(self, day: int) -> Images:
        self.days.append(day)
        return photos(*[self.label] * self.count)

    def check(self, day: int) -> Images:
        return self.use(day)

    def corrections(self, day: int) -> NDArray[np.int16]:
        return np.full(self.count, -1, np.int16)


class Recorded:
    """Work that is never done, as on a phone that is busy."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prepare(self, kind: str) -> None:
        self.asked.append(kind)

    def personalise(self) -> None:
        self.asked.append("delivery")

    def wait(self, seconds: float) -> None:
        self.asked.append("wait")


def learner(folder: Path, owner: Owner, config: Config | None = None, day: int = 100, replying: bool = True) -> Learner:
    """What a device's message (`replying`) or its own work has of the phone."""
    settings = config or settings_of()
    return Learner(folder, CountingEngine(), owner, settings, durable=False, day=lambda round: day, replying=replying)


def phone(folder: Path, owner: Owner, config: Config | None = None) -> Phone:
    """A device that answers at once, so that all differences in time would show."""
    settings = config or settings_of()
    return Phone(folder, lambda: learner(folder, owner, settings), settings, durable=False, background=Recorded())


def settings_of(*more: str) -> Config:
    return load_config(None, ["privacy.min_cohort=20", "planner.multiple=1", *more])


def masked(step: int, attempt: int = 0, round: int = 1) -> MaskedRequest:
    """One step of a masked sum of class co-occurrence."""
    return MaskedRequest(
        run="a" * 64, round=round, request="b" * 64, kind="usage", sum=SumFields.of(SPEC), attempt=f"{attempt:032x}",
        step=step, tensors=digest_of({}), dropout=0.1, corrupted=0.05,
    )  # fmt: skip


def start(attempt: int = 0) -> dict[str, Any]:
    """The message of a sum's first step."""
    return {"secure": np.frombuffer(ServerSum(masked(0, attempt).terms(), range(COHORT)).request(0), np.uint8)}


def delivery(*labels: int, round: int = 1, **tensors: Any) -> tuple[DeliverRequest, dict[str, Any]]:
    """A delivery with reference images of `labels`."""
    given: dict[str, Any] = {"centroids": np.full((1, CLASSES), 1 / CLASSES, np.float32)}
    if labels:
        images = photos(*labels)
        given |= {"reference": mosaic.code(images), "reference_labels": np.array(labels, np.int32)}
    request = DeliverRequest(
        run="a" * 64, round=round, request="b" * 64, mode="plan", weights="e" * 64, clusters=(), digests=()
    )
    return request, {**given, **tensors}
