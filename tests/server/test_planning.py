"""Cluster plans: classes, images held out, a tolerance that is verified, limits of tiers."""

import numpy as np
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import Planner, Tier
from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import DataError, PlanError
from fedcaptor.common.planner import Budget, ladder
from fedcaptor.common.tiers import fits
from fedcaptor.common.torch_engine import tolerance
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.torch_engine.tolerance import RATIOS, smallest_within
from fedcaptor.server import planning
from fedcaptor.server.planning import Reference, cluster_classes, plan_cluster

CENTROID = np.array([0, 0.02, 0, 0.6, 0, 0.38, 0, 0, 0, 0])
LOW = Tier(name="low", share=0.4, macs=0.12, bytes=90_000)
HIGH = Tier(name="high", share=0.6)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))


@pytest.fixture(scope="module")
def reference():
    data = load("embedded")
    part = split(data)["reference"]
    return Reference(data.x[part], data.y[part])


@pytest.fixture(scope="module")
def evidence(base, reference):
    return Evidence.gather(base, np.array([0, 6]), images_of(reference, 0, 30))


def images_of(reference, start, end):
    return np.concatenate([reference.x[reference.y == c][start:end] for c in (0, 6)])


def test_a_cluster_serves_its_most_used_classes():
    assert cluster_classes(np.array([0.1, 0.5, 0.0, 0.4]), 0.9).tolist() == [1, 3]
    assert cluster_classes(np.array([0.1, 0.5, 0.0, 0.4]), 0.91).tolist() == [0, 1, 3]
    assert cluster_classes(np.array([1.0, 0.0]), 1.0).tolist() == [0]


@pytest.mark.slow
def test_every_tier_gets_a_plan_within_its_limits(base, reference):
    settings = Planner(images=60, tolerance=0)
    low, high = plan_cluster(base, CENTROID, reference, settings, None, 0, (LOW, HIGH))
    assert fits(LOW, base.groups, low.plan.counts())
    assert not fits(LOW, base.groups, high.plan.counts())
    assert high.plan.classes(base.groups).tolist() == [3, 5]
    (alone,) = plan_cluster(base, CENTROID, reference, settings, None, 0)
    assert alone.plan.digest == high.plan.digest
    assert alone.disagreement is None


def test_an_impossible_tier_is_named(base, reference):
    tiny = Tier(name="tiny", share=1, bytes=1000)
    with pytest.raises(PlanError, match=r"tier tiny: bytes budget is 1000, \d+ is the nearest possible"):
        plan_cluster(base, CENTROID, reference, Planner(images=30), None, 0, (tiny,))


def test_images_that_verify_are_not_those_that_calibrate(base, reference, monkeypatch):
    seen, held = [], []

    def gather(base, classes, images, **options):
        seen.append(images)
        return "evidence"

    def verify(base, evidence, images, *_):
        held.append(images)

    monkeypatch.setattr(planning.Evidence, "gather", gather)
    monkeypatch.setattr(planning, "_plan_tier", lambda evidence, tier, settings, images: held.append(images))
    plan_cluster(base, CENTROID, reference, Planner(images=90, tolerance=0.05), None, 0)
    assert (len(seen[0]), len(held[0])) == (60, 30)
    assert not {image.tobytes() for image in seen[0]} & {image.tobytes() for image in held[0]}
    plan_cluster(base, CENTROID, reference, Planner(images=90, tolerance=0), None, 0)
    assert (len(seen[1]), len(held[1])) == (90, 0)


@pytest.mark.slow
def test_a_tolerance_is_kept_by_more_macs_within_the_tier(base, reference):
    settings = Planner(images=90, tolerance=0.04, macs=0.05)
    low, high = plan_cluster(base, CENTROID, reference, settings, None, 0, (LOW, HIGH))
    assert high.disagreement <= 0.04
    assert high.submodel.macs_ratio < 0.9
    assert fits(LOW, base.groups, low.plan.counts())


@pytest.mark.slow
def test_with_a_tolerance_the_macs_are_the_fewest(base, reference):
    """A far smaller submodel would agree often enough."""
    (found,) = plan_cluster(base, CENTROID, reference, Planner(images=90, tolerance=0.5, macs=0.6), None, 0)
    assert 0.55 < found.submodel.macs_ratio <= 0.6


@pytest.mark.slow
def test_the_smallest_rung_within_the_tolerance_is_found(evidence, reference):
    held = images_of(reference, 30, 100)
    found = smallest_within(evidence, Budget(1.0), held, 0.06)
    assert found.disagreement <= 0.06
    plans = ladder(evidence.base.groups, evidence.curves, evidence.classes, Budget(1.0), RATIOS)
    smaller = [r for r, plan in plans.items() if evidence.base.groups.macs(plan.counts()) < macs(found.submodel)]
    below = smallest_within(evidence, Budget(1.0), held, 1.0, smaller[-1:])  # the next smaller rung alone
    assert below.disagreement > 0.06


def macs(submodel):
    return submodel.base.groups.macs(submodel.plan.counts())


@pytest.mark.slow
def test_a_tolerance_out_of_reach_ends_at_the_largest_rung(evidence, reference, monkeypatch):
    held = images_of(reference, 30, 60)
    monkeypatch.setattr(tolerance.Submodel, "predict", lambda self, images: np.full(len(images), -1))
    found = smallest_within(evidence, Budget(0.3), held, 0.5, (0.2, 0.3, 0.4))
    assert found.disagreement == 1.0
    assert 0.2 < found.submodel.macs_ratio <= 0.3


def test_nothing_is_verified_without_images(evidence, reference):
    with pytest.raises(DataError, match="0 images are held out"):
        smallest_within(evidence, Budget(1.0), reference.x[:0], 0.1)


def test_too_few_images_to_verify_with_are_planned_within_the_macs(base, reference):
    (plan,) = plan_cluster(base, CENTROID, reference, Planner(images=2, tolerance=0.05, macs=0.5), None, 0)
    assert plan.disagreement is None
    assert plan.submodel.macs_ratio <= 0.5
