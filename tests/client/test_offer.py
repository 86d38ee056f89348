"""What a phone reads out of a delivery: the plans of its own tier, for every cluster."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedcaptor.client.offer import read_offer
from fedcaptor.common.config import parse
from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan
from tests.common.small_groups import small_groups

BOUNDS = parse({}).delivery
BASE = SimpleNamespace(groups=small_groups(), weights_digest="e" * 64)


def offered(tiers):
    """Two clusters; the plan of number n keeps n + 1 channels of b."""
    plans = [Plan.of(BASE.groups, {"a": [0], "b": range(n + 1), "c": [0, 1]}) for n in range(2 * max(len(tiers), 1))]
    tensors = {f"plan.{n}": pack_plan(dict(plan.kept), BASE.groups) for n, plan in enumerate(plans)}
    request = DeliverRequest(
        run="a" * 64,
        round=1,
        request="b" * 32,
        mode="plan",
        weights="e" * 64,
        clusters=tuple(range(len(plans))),
        digests=tuple(plan.digest for plan in plans),
        tiers=tiers,
    )
    return request, tensors | {"centroids": np.full((2, 3), 1 / 3, dtype=np.float32)}


def kept(offer):
    return [len(plan.kept["b"]) for plan in offer.plans]


def test_plans_are_numbered_by_cluster_then_tier():
    request, tensors = offered(("low", "middle", "high"))
    assert kept(read_offer(request, tensors, BASE, BOUNDS).of("low")) == [1, 4]
    assert kept(read_offer(request, tensors, BASE, BOUNDS).of("high")) == [3, 6]


def test_without_tiers_the_number_is_the_cluster():
    assert kept(read_offer(*offered(()), BASE, BOUNDS).of("")) == [1, 2]
    assert kept(read_offer(*offered(()), BASE, BOUNDS).of("low")) == [1, 2]


@pytest.mark.parametrize("tier", ["", "huge"])
def test_an_offer_without_the_phones_tier_is_refused(tier):
    with pytest.raises(WireError, match="tier"):
        read_offer(*offered(("low", "high")), BASE, BOUNDS).of(tier)


def test_a_missing_plan_is_refused():
    request, tensors = offered(("low", "high"))
    del tensors["plan.3"]
    with pytest.raises(WireError, match="3 plans"):
        read_offer(request, tensors, BASE, BOUNDS)


def test_a_server_with_other_weights_is_refused_with_words_for_the_owner():
    """Channel groups are those of the structure alone: other weights would fit without an error."""
    request, tensors = offered(())
    other = SimpleNamespace(groups=BASE.groups, weights_digest="f" * 64)
    with pytest.raises(WireError, match=r"weights e{12}, this phone has f{12}: install") as raised:
        read_offer(request, tensors, other, BOUNDS)
    assert raised.value.reason == "wrong_weights"
