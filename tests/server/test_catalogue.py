"""The catalogue of a round: packed for the journal and back, and what of it phones are offered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.plan_bits import unpack_plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.prune import prune
from fedcaptor.server import catalogue
from fedcaptor.server.planning import ClusterPlan, Reference

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
REFERENCE = Reference(RNG.integers(0, 256, (60, 28, 28, 1), np.uint8), np.repeat(np.arange(10), 6))
COURIER: Any = SimpleNamespace(run="a" * 64, request_id=lambda *parts: f"{len(parts):064d}")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))


@pytest.fixture(scope="module")
def made(base: BaseModel) -> list[ClusterPlan]:
    """Two clusters' plans."""
    found = [prune(base, np.array(classes), REFERENCE.x, Budget(0.3)) for classes in ([1, 2], [3, 5, 7])]
    return [ClusterPlan(submodel, [{"group": "a"}], 0.01 * n) for n, submodel in enumerate(found)]


def test_what_is_packed_comes_back_with_ready_networks(base: BaseModel, made: list[ClusterPlan]) -> None:
    back = catalogue.unpack(*catalogue.pack(made, base.groups), base.groups)
    assert [plan.digest for plan in back.plans] == [one.plan.digest for one in made]
    assert (list(back.why), list(back.disagreement)) == ([[{"group": "a"}]] * 2, [0.0, 0.01])
    for one, submodel in zip(made, back.submodels(base), strict=True):
        np.testing.assert_array_equal(submodel.scores(REFERENCE.x[:5]), one.submodel.scores(REFERENCE.x[:5]))


def test_an_offer_holds_what_is_configured_and_the_same_plans(base: BaseModel, made: list[ClusterPlan]) -> None:
    config = load_config(None, ["personal.reference=4"])
    centroids, preference = np.full((2, 10), 0.1), np.ones((4, 10))
    plans = [one.plan for one in made]
    tensors = catalogue.offered(config, REFERENCE, base.groups, centroids, plans, preference)
    assert set(tensors) == {"centroids", "reference", "reference_labels", "preference", "plan.0", "plan.1"}
    assert np.bincount(tensors["reference_labels"]).tolist() == [4] * 10
    kept = unpack_plan(tensors["plan.1"], base.groups)
    assert kept[base.groups.output.name].tolist() == [3, 5, 7]
    request = catalogue.offer(config, COURIER, 2, tensors, plans, "e" * 64)
    assert (request.round, request.mode, request.weights, request.clusters) == (2, "plan", "e" * 64, (0, 1))
    assert request.digests == tuple(plan.digest for plan in plans)


def test_what_is_switched_off_is_not_offered(base: BaseModel) -> None:
    config = load_config(None, ["personal.reference=0", "scores.weight=0"])
    assert set(catalogue.offered(config, REFERENCE, base.groups, np.ones((1, 10)), [], np.ones((4, 10)))) == {
        "centroids"
    }
