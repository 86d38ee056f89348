"""A delivery that does not fit, crashes, or contradicts the full model does no lasting harm, and tells no tier."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.client import pending_delivery
from fedcaptor.client.fallback import answer
from fedcaptor.client.kept_models import read_models
from fedcaptor.client.learner import Learner
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.submodel_file import digest, encode
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import prune
from tests import tiny
from tests.attacks.server.devices import Owner, delivery, phone
from tests.client.fake_engine import CLASSES, GROUPS
from tests.client.test_delivery import CLUSTER, OWN, Feed, config
from tests.client.test_delivery import delivery as submodel_delivery
from tests.client.test_delivery import phone as simulated

FILTERS = sum(group.channels for group in GROUPS.prunable)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny.base_model(tiny.write(tmp_path_factory.mktemp("tiny"))[1])


@pytest.fixture(scope="module")
def cluster(base: BaseModel) -> Submodel:
    x, y = tiny.images(300, 3)
    return prune(base, np.array(CLUSTER), x[np.isin(y, CLUSTER)], Budget(0.6, 2))


def swapped(base: BaseModel, cluster: Submodel) -> tuple[DeliverRequest, dict[str, Any]]:
    """The cluster's submodel with the outputs of the owner's two classes exchanged, announced as it is sent."""
    request, tensors = submodel_delivery(base, cluster, "submodel")
    state = state_of(cluster.module)
    places = [CLUSTER.index(label) for label in OWN]
    for name in list(state)[-2:]:
        state[name] = state[name].copy()
        state[name][places] = state[name][places[::-1]]
    file = encode(state)
    return request.model_copy(update={"digests": (digest(cluster.plan, file),)}), {**tensors, "submodel.1": file}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("fallback", ["cluster", "abstain"])
def test_a_submodel_with_exchanged_outputs_is_not_its_own_judge(
    tmp_path: Path, base: BaseModel, cluster: Submodel, fallback: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = simulated(tmp_path, base, config("submodel", fallback))
    one.deliver(*swapped(base, cluster))
    assert "contradicts this phone's" in caplog.text
    assert Outcome.read(tmp_path) is None
    assert not pending_delivery.exists(tmp_path)
    one.deliver(*submodel_delivery(base, cluster, "submodel"))
    assert Outcome.read(tmp_path) is not None


@pytest.mark.usefixtures("one_thread")
def test_without_the_full_model_the_present_submodel_judges(
    tmp_path: Path, base: BaseModel, cluster: Submodel, caplog: pytest.LogCaptureFixture
) -> None:
    """Habits drift, so that the phone would take the new file; the old submodel still knows one of its classes."""

    class Drifting(Feed):
        def _of(self, seed: int, count: int) -> Any:
            x, y = tiny.images(count * 6, seed)
            chosen = np.isin(y, OWN if seed % 100 < 2 else [0, 1])
            return x[chosen][:count], y[chosen][:count]

    settings = config("submodel", "abstain", half_life=20.0, drift=0.05)
    one = simulated(tmp_path, base, settings, Drifting())
    one.deliver(*submodel_delivery(base, cluster, "submodel", 1))
    before, engine = Outcome.read(tmp_path), TorchEngine(base)
    assert before is not None
    request, tensors = swapped(base, cluster)
    one.deliver(request.model_copy(update={"round": 2}), tensors)
    assert "contradicts this phone's" in caplog.text
    assert Outcome.read(tmp_path) == before.model_copy(update={"drifted": True})
    x, y = tiny.images(200, 21)
    given = answer(engine, read_models(tmp_path, engine, "abstain"), settings.fallback, x[np.isin(y, OWN)])
    sure = ~given.escalated
    assert (given.labels[sure] == y[np.isin(y, OWN)][sure]).mean() > 0.8


@pytest.mark.parametrize("tiers", [(), ("low", "high"), ("huge",)])
def test_a_phone_accepts_the_same_offers_whatever_its_tier(tmp_path: Path, tiers: tuple[str, ...]) -> None:
    plan = Plan.of(GROUPS, {"a": [0], "b": [0, 1], "c": [0, 1]})
    plans = {f"plan.{n}": pack_plan(dict(plan.kept), GROUPS) for n in range(max(len(tiers), 1))}
    request, tensors = delivery(0, 1, 2, **plans)
    named = {"clusters": tuple(range(len(plans))), "digests": (plan.digest,) * len(plans), "tiers": tiers}
    phone(tmp_path, Owner(1)).deliver(request.model_copy(update=named), tensors)
    assert pending_delivery.exists(tmp_path)


def test_what_the_phone_cannot_personalise_with_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(learner: Learner, *rest: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Learner, "_personalise", fails)
    one = simulated_fake(tmp_path)
    one.deliver(*delivery(0, 1, 2))
    assert "given up" in caplog.text
    assert not pending_delivery.exists(tmp_path)


def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(learner: Learner, *rest: Any) -> None:
        raise OSError(28, "No space left on device")

    one = simulated_fake(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_personalise", fails)
        with pytest.raises(OSError, match="No space"):
            one.deliver(*delivery(0, 1, 2))
    assert pending_delivery.exists(tmp_path)
    one.learner().finish()
    assert Outcome.read(tmp_path) is not None


@pytest.mark.slow
def test_random_deliveries_are_refused_or_personalised_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """None is accepted that the personal step then stumbles over."""
    rng, accepted = np.random.default_rng(0), 0
    for n in range(300):
        one = simulated_fake(tmp_path / str(n))
        request, tensors = delivery(*rng.integers(CLASSES, size=rng.integers(1, 9)))
        k = int(rng.integers(1, 4))
        plans = [Plan.of(GROUPS, _random_channels(rng)) for _ in range(k)]
        tensors |= {f"plan.{i}": pack_plan(dict(plan.kept), GROUPS) for i, plan in enumerate(plans)}
        tensors["centroids"] = rng.dirichlet(np.ones(CLASSES), k).astype(np.float32)
        tensors["preference"] = rng.normal(size=(FILTERS, CLASSES)).astype(np.float32)
        tensors["calibration"] = np.append(1.0, rng.normal(size=CLASSES)).astype(np.float32)
        for name in rng.choice(list(tensors), size=int(rng.integers(3))):
            tensors[name] = _spoiled(tensors[name], rng)
        named = {"clusters": tuple(range(k)), "digests": tuple(plan.digest for plan in plans)}
        try:
            one.deliver(request.model_copy(update=named), tensors)
            accepted += 1
        except WireError:
            continue
    assert accepted > 50
    given_up = [record.args for record in caplog.records if record.levelno >= logging.WARNING]
    assert given_up == []


def simulated_fake(folder: Path) -> Any:
    """A phone with a fake engine that works in place."""
    one = phone(folder, Owner(1))
    learner = replace(one.learner(), replying=False)
    return replace(one, learner=lambda: learner, background=None)


def _random_channels(rng: np.random.Generator) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for group in GROUPS.groups:
        count = int(rng.integers(1, group.channels + 1))
        kept[group.name] = np.sort(rng.choice(group.channels, count, replace=False))
    return kept


def _spoiled(tensor: Any, rng: np.random.Generator) -> Any:
    """The tensor with one value far off, or with a row too many, or too few."""
    kind = int(rng.integers(3))
    if kind == 0:
        changed = tensor.copy()
        changed.reshape(-1)[rng.integers(changed.size)] = rng.choice([0, 1, 200])
        return changed
    return np.concatenate([tensor, tensor[:1]]) if kind == 1 else tensor[: max(len(tensor) - 1, 0)]
