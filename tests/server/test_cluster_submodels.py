"""The submodels of a round: packed for the journal and back, and what of it phones are offered."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.assets import asset
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import load_config
from fedcaptor.common.data import mosaic
from fedcaptor.common.messages import DeliverRequest, digest_of
from fedcaptor.common.plan_bits import unpack_plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.prune import prune
from fedcaptor.server import cluster_submodels, phases
from fedcaptor.server.calibrate import calibrate
from fedcaptor.server.collect import Tally
from fedcaptor.server.planning import ClusterPlan, Reference

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
REFERENCE = Reference(RNG.integers(0, 256, (60, 28, 28, 1), np.uint8), np.repeat(np.arange(10), 6))
CALIBRATION = Calibration(1.5, np.linspace(-1, 1, 10))
COURIER: Any = SimpleNamespace(
    run="a" * 64, operator=None, request_id=lambda *parts: hashlib.sha256(repr(parts).encode()).hexdigest()
)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))


@pytest.fixture(scope="module")
def made(base: BaseModel) -> list[ClusterPlan]:
    """Two clusters' plans."""
    found = [prune(base, np.array(classes), REFERENCE.x, Budget(0.3)) for classes in ([1, 2], [3, 5, 7])]
    return [ClusterPlan(submodel, [{"group": "a"}], 0.01 * n) for n, submodel in enumerate(found)]


@pytest.mark.slow
def test_what_is_packed_comes_back_with_ready_networks(base: BaseModel, made: list[ClusterPlan]) -> None:
    back = cluster_submodels.unpack(*cluster_submodels.pack(made, base.groups), base.groups)
    assert [plan.digest for plan in back.plans] == [one.plan.digest for one in made]
    assert (list(back.why), list(back.disagreement)) == ([[{"group": "a"}]] * 2, [0.0, 0.01])
    for one, submodel in zip(made, back.submodels(base), strict=True):
        np.testing.assert_array_equal(submodel.scores(REFERENCE.x[:5]), one.submodel.scores(REFERENCE.x[:5]))


def test_an_offer_holds_what_is_configured_and_the_same_plans(base: BaseModel, made: list[ClusterPlan]) -> None:
    config = load_config()
    centroids, preference = np.full((2, 10), 0.1), np.ones((4, 10))
    plans = [one.plan for one in made]
    tensors = cluster_submodels.offered(config, base.groups, centroids, plans, preference, [CALIBRATION])
    assert set(tensors) == {"calibration", "centroids", "preference", "plan.0", "plan.1"}
    kept = unpack_plan(tensors["plan.1"], base.groups)
    assert kept[base.groups.output.name].tolist() == [3, 5, 7]
    calibration = Calibration.unpack(tensors["calibration"], 10)
    assert calibration.temperature == 1.5
    np.testing.assert_allclose(calibration.bias, CALIBRATION.bias, rtol=1e-6)
    request = cluster_submodels.offer(config, COURIER, 2, tensors, plans, "e" * 64)
    assert (request.round, request.mode, request.weights, request.clusters) == (2, "plan", "e" * 64, (0, 1))
    assert request.digests == tuple(plan.digest for plan in plans)


def test_what_is_switched_off_is_not_offered(base: BaseModel) -> None:
    config = load_config(None, ["scores.weight=0"])
    tensors = cluster_submodels.offered(config, base.groups, np.ones((1, 10)), [], np.ones((4, 10)), [CALIBRATION])
    assert set(tensors) == {"calibration", "centroids"}


def delivered(base: BaseModel, made: list[ClusterPlan], *overrides: str) -> Tensors:
    """What the phase sends to a fleet of one phone."""
    sent: list[Tensors] = []

    def deliver(request: DeliverRequest, tensors: Tensors, nodes: list[int]) -> tuple[None, Tally]:
        assert request.request == COURIER.request_id("1", "deliver", digest_of(tensors))
        sent.append(tensors)
        return None, Tally()

    flow: Any = SimpleNamespace(
        config=load_config(None, [*overrides]),
        courier=SimpleNamespace(**vars(COURIER), deliver=deliver),
        base=base,
        reference=REFERENCE,
        adaptation=None,
        issued=lambda round: 0,
        nodes=[7],
        others=set(),
        phase=lambda round, name, compute: compute(),
        tallied=lambda round, name, tally, tensors: ({"tally": {"bytes_down": 1}}, tensors),
    )
    flow.calibrations = [calibrate(base.scores(REFERENCE.x), REFERENCE.y)]
    ready = cluster_submodels.unpack(*cluster_submodels.pack(made, base.groups), base.groups)
    phases.deliver(flow, 1, np.full((2, 10), 0.1), ready, None)
    return sent[0]


def test_reference_images_take_what_is_left_of_the_download(base: BaseModel, made: list[ClusterPlan]) -> None:
    """All else is sent whole, even where it alone is above the bound."""
    full = sum(tensor.size for tensor in base.state.values()) * 2  # in half precision
    counts = []
    for bound in (20_000, 500):
        tensors = delivered(base, made, "personal.reference=6", f"delivery.download={bound / full}")
        assert {"calibration", "centroids", "plan.0", "plan.1"} <= set(tensors)
        counts.append(tensors.get("reference_labels", np.zeros(0)).size)
        assert bound == 500 or sum(tensor.nbytes for tensor in tensors.values()) <= bound
    assert 60 > counts[0] > counts[1] == 0
    assert not {"reference", "reference_labels"} & set(delivered(base, made, "personal.reference=0"))


def test_phones_receive_the_reference_images_and_a_fitted_calibration(base: BaseModel, made: list[ClusterPlan]) -> None:
    tensors = delivered(base, made, "personal.reference=4")
    assert np.bincount(tensors["reference_labels"]).tolist() == [4] * 10
    images = mosaic.decode(tensors["reference"], 40, base.groups.input_shape)
    known = {image.tobytes(): label for image, label in zip(REFERENCE.x, REFERENCE.y, strict=True)}
    assert [known[image.tobytes()] for image in images] == tensors["reference_labels"].tolist()
    expected = calibrate(base.scores(REFERENCE.x), REFERENCE.y)
    assert expected.temperature != 1
    np.testing.assert_array_equal(tensors["calibration"], expected.packed())
