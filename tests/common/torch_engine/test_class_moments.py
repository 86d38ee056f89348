"""Curves from class moments stand in for those from the images themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from fedcaptor.common.assets import asset
from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import DataError
from fedcaptor.common.observations import Sampler
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine import class_moments
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.class_moments import curves_for, gather, network_digest
from fedcaptor.common.torch_engine.evidence import output_sensitivity, recorded
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.prune import Evidence

NEEDED = np.array([1, 5, 9])
USAGE = np.array([0, 0.5, 0, 0, 0, 0.25, 0, 0, 0, 0.25])

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def base():
    return BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))


@pytest.fixture(scope="module")
def images():
    """40 images of class 1, 20 of 5 and 9 and 8 of others, in no order of classes; labels; images not among them."""
    data = load("embedded")
    part = split(data)["reference"]
    counts = dict.fromkeys((0, 2, 3, 4, 6), 8) | {1: 40, 5: 20, 9: 20}
    own = [part[data.y[part] == c][:count] for c, count in counts.items()]
    chosen = np.random.default_rng(0).permutation(np.concatenate(own))
    held = np.concatenate([part[data.y[part] == c][60:120] for c in NEEDED])
    return data.x[chosen], data.y[chosen], data.x[held], data.y[held]


@pytest.fixture(scope="module")
def moments(base, images):
    return gather(base, images[0], images[1])


@pytest.fixture(scope="module")
def evidence(base, images):
    return Evidence.gather(base, NEEDED, images[0][np.isin(images[1], NEEDED)], rows=32 * 80)


def ranks(curve):
    found = np.empty(len(curve.order))
    found[curve.order] = np.arange(len(found))
    return found


def test_covariances_are_those_of_the_images_of_the_needed_classes(base, images, moments):
    x = normalise(images[0][np.isin(images[1], NEEDED)], base.mean, base.std)
    with recorded(base.module, base.groups, Sampler(1, 32)) as rows, torch.no_grad():
        base.module(x)
    for (group, layer), seen in rows.items():
        found, expected = moments.covariance(group, layer, USAGE), np.cov(seen, rowvar=False, ddof=0)
        assert np.linalg.norm(found - expected) <= 0.006 * np.trace(expected)


def test_sensitivity_at_the_last_layer_is_exact(base, images, moments):
    x = normalise(images[0][:16], base.mean, base.std)
    expected = output_sensitivity(base.module, base.groups, NEEDED, x.repeat(8, 1, 1, 1))["classifier.3"]
    found = moments.sensitivity("classifier.3", NEEDED)
    np.testing.assert_allclose(found.diagonal()[NEEDED], 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(found, expected, atol=0.2)  # random signs over 128 images


def test_batches_do_not_matter(base, images, moments):
    again = gather(base, images[0], images[1], batch=7)
    for group, layer in moments.inputs:
        expected = moments.covariance(group, layer, USAGE)
        error = again.covariance(group, layer, USAGE) - expected
        assert np.abs(error).max() <= 2e-3 * np.abs(expected).max()


def test_channels_go_in_nearly_the_same_order(base, moments, evidence):
    curves = curves_for(base, moments, USAGE, NEEDED)
    assert curves.keys() == evidence.curves.keys()
    agreement = {name: spearmanr(ranks(c), ranks(evidence.curves[name]))[0] for name, c in curves.items()}
    assert min(agreement.values()) > 0.6, agreement
    assert np.mean(list(agreement.values())) > 0.75, agreement


def test_plans_answer_as_well(base, images, moments, evidence):
    curves = curves_for(base, moments, USAGE, NEEDED)
    right = [
        np.mean(evidence.build(allocate(base.groups, c, NEEDED, Budget(macs=0.1))).predict(images[2]) == images[3])
        for c in (curves, evidence.curves)
    ]
    assert right[0] > 0.9
    assert right[0] > right[1] - 0.03


def test_no_forward_pass_is_made(base, moments, monkeypatch):
    monkeypatch.setattr(type(base.module), "forward", lambda *_: pytest.fail("a forward pass"))
    assert curves_for(base, moments, USAGE, NEEDED)


def test_usage_of_classes_that_are_not_needed_is_left_out(base, moments):
    noisy = USAGE + np.where(np.isin(np.arange(10), NEEDED), 0, 0.01)
    one, other = (curves_for(base, moments, usage, NEEDED) for usage in (USAGE, noisy))
    assert all((one[name].order == other[name].order).all() for name in one)


def test_start_and_importance_work_as_in_evidence(base, moments):
    group = base.groups.prunable[1]
    start = Plan.of(base.groups, {group.name: np.arange(5)})
    factors = {group.name: np.where(np.arange(group.channels) == 7, 1e9, 1.0)}
    assert curves_for(base, moments, USAGE, NEEDED, importance=factors)[group.name].order[-1] == 7
    curve = curves_for(base, moments, USAGE, NEEDED, start=start)[group.name]
    assert sorted(curve.order[-5:]) == list(range(5))
    assert not curve.cost[:-5].any()


def test_a_class_without_images_is_an_error_only_where_it_is_needed(base, moments):
    with pytest.raises(DataError, match="class 7 has 0 reference images"):
        curves_for(base, moments, np.full(10, 0.1), np.array([1, 7]))


@pytest.mark.parametrize("labels", [[], [10], [-1]])
def test_labels_are_checked(base, images, labels):
    with pytest.raises(DataError, match=r"all in 0\.\.9"):
        gather(base, images[0][: len(labels)], np.array(labels, np.int64))


def test_memory_is_that_of_one_batch(base, images, monkeypatch):
    seen = []
    monkeypatch.setattr(class_moments, "normalise", lambda x, *rest: seen.append(len(x)) or normalise(x, *rest))
    gather(base, images[0][:40], images[1][:40], batch=3)
    assert max(seen) == 3
    assert sum(seen) == 40


def test_the_digest_is_of_groups_and_weights(base):
    name = next(iter(base.state))
    retrained = replace(base, state={**base.state, name: base.state[name] + 1})
    assert network_digest(base) == network_digest(replace(base, state=dict(base.state)))
    assert network_digest(base) != network_digest(retrained)
