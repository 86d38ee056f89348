"""A phone's file: with the phone's keys alone, a phone does the same to the byte."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic.fields import FieldInfo

from fedcaptor.client.learner import Learner
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.common.config import Config, Reader, load_config, parse, phone_config
from fedcaptor.common.config.files import toml
from fedcaptor.common.config.schema.base import readers
from fedcaptor.common.config.schema.sections import all_keys, is_list
from fedcaptor.common.data import mosaic
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.torch_engine.base import BaseModel
from tests import tiny

TIERS = [{"name": "low", "share": 0.25, "macs": 0.5, "bytes": 90_000}, {"name": "high", "share": 0.75}]
GIVEN: dict[str, Any] = {
    "population.partitioner_arguments": {"alpha": 0.5, "name": 'a "b"\x7f\n'},
    "privacy.sums": "plain",
    "privacy.scores_share": 0.4,
    "privacy.epsilon": 5.0,
    "delivery.mode": "plan",
    "run.rounds": 3,
    "planner.multiple": 2,
    "personal.enabled": True,
    "personal.ladder": (0.35, 0.6),
    "personal.tolerance": 0.3,
    "personal.tune_steps": 5,
    "personal.tier": "low",
    "usage.half_life": 30.0,
    "deployment.host": "phones.example.org",
    "deployment.bind": "127.0.0.2",
    "deployment.max_body": 1 << 21,
    "device.input_shape": (1, 12, 12),
    "device.weights_digest": "e" * 64,
    "usage.max_classes": 2,
    "usage.min_share": 0.2,
    "fallback.retention": 0.8,
    "fallback.mode": "abstain",
    "fallback.score": "energy",
    "population.law": "zipf",
    "clusters.method": "own.module:Clustering",
    "scores.images": 7,
    "scores.weight": 0.6,
}
"""Values that suit a small phone; every other key has some value that is not its default."""


def other(name: str, field: FieldInfo) -> Any:
    """A value that is not the key's default."""
    default, kind = field.default, field.annotation
    if name in GIVEN:
        return GIVEN[name]
    if isinstance(default, bool):
        return not default
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if value != default)
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default * 0.9 or 0.05
    return "another"


def whole(**changed: Any) -> Config:
    values: dict[str, Any] = {"tiers": TIERS}
    for section, key, field in all_keys():
        if not is_list(section):
            values.setdefault(section, {})[key] = changed.get(f"{section}.{key}", other(f"{section}.{key}", field))
    return parse(values)


def test_it_holds_what_phones_read_and_nothing_else(tmp_path: Path) -> None:
    config, file = whole(), tmp_path / "phone.toml"
    file.write_text(phone_config(config))
    own = load_config(file)
    given = tomllib.loads(file.read_text())
    for section, key, field in all_keys():
        if is_list(section):
            continue
        for_phones = Reader.phone in readers(field)
        assert (key in given.get(section, {})) == for_phones
        value = getattr(getattr(own, section), key)
        assert value == (getattr(getattr(config, section), key) if for_phones else field.default)
    assert own.tiers == config.tiers
    assert own.own_tier == config.own_tier
    assert phone_config(own) == phone_config(config)
    assert phone_config(load_config()).count("\n") < 90


@pytest.mark.parametrize("value", [True, 3, -0.5, 1e-7, 1e22, 'ü "q" \\ \n\x7f\x00😀', [1, 2.5], {"a b": [True]}, ()])
def test_values_are_written_as_toml(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == (list(value) if isinstance(value, tuple) else value)


class Feed:
    """The owner of classes 1 and 4, from round 2 on of 2 and 5."""

    def use(self, round: int) -> NDArray[np.uint8]:
        return self._of(round, round)

    def check(self, round: int) -> NDArray[np.uint8]:
        return self._of(round + 100, round)

    def corrections(self, round: int) -> NDArray[np.int16]:
        return np.full(len(self.use(round)), -1, dtype=np.int16)

    def _of(self, seed: int, round: int) -> NDArray[np.uint8]:
        x, y = tiny.images(200, seed)
        return x[np.isin(y, [1, 4] if round < 2 else [2, 5])][:40]


def offer(base: BaseModel, round: int) -> tuple[DeliverRequest, dict[str, Any]]:
    rng = np.random.default_rng(5)
    x, y = tiny.images(60, 8)
    centroids = rng.dirichlet(np.ones(tiny.CLASSES), 2).astype(np.float32)
    tensors = {"centroids": centroids, "reference": mosaic.code(x), "reference_labels": y.astype(np.int32)}
    names = {"weights": base.weights_digest, "clusters": (), "digests": ()}
    return DeliverRequest(run="a" * 64, round=round, request="b" * 64, mode="plan", **names), tensors  # type: ignore[arg-type]


def done(folder: Path, base: BaseModel, config: Config) -> dict[str, bytes]:
    """All that a phone sends and keeps in two rounds, before noise."""
    learner, found = Learner(folder, TorchEngine(base), Feed(), config, durable=False), {}
    filters = sum(group.channels for group in base.groups.prunable)
    asked = {
        "usage": {"centroids": offer(base, 1)[1]["centroids"]},
        "scores": {"pool": np.arange(filters) % 3},
        "outcome": {"centroids": offer(base, 1)[1]["centroids"]},
    }
    for round in (1, 2):
        request, tensors = offer(base, round)
        rows = np.random.default_rng(1).random((filters, tiny.CLASSES)).astype(np.float32)
        learner.accept(request, {**tensors, "preference": rows})
        learner.finish()
        for kind, given in asked.items():
            ask: Any = SimpleNamespace(round=round, kind=kind)
            found[f"{kind} {round}"] = np.asarray(learner.vector(ask, given)).tobytes()
        for name in ("outcome.json", "submodel.safetensors"):
            if (folder / name).exists():
                found[f"{name} {round}"] = (folder / name).read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("changed", [{}, {"fallback.mode": "kept_full", "personal.tier": "high"}], ids=["low", "high"])
def test_a_phone_with_its_file_does_the_same_to_the_byte(tmp_path: Path, changed: dict[str, Any]) -> None:
    base = tiny.base_model(tiny.write(tmp_path / "tiny")[1])
    config, file = whole(**changed), tmp_path / "phone.toml"
    file.write_text(phone_config(config))
    expected = done(tmp_path / "whole", base, config)
    assert {"submodel.safetensors 1", "outcome.json 2"} <= set(expected)
    assert done(tmp_path / "own", base, load_config(file)) == expected
    assert done(tmp_path / "default", base, load_config()) != expected
