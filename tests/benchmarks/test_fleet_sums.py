"""A fleet's answers are those of phones that are run one by one; its courier's sums hold what theirs do."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from benchmarks.fleet_sums import Fleet, FleetCourier, fleet_sum, noise_of
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.messages import SumFields, SumRequest
from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.server import plausible
from fedcaptor.server.budget import SumBudget, steps
from fedcaptor.server.collect import Courier
from fedcaptor.server.masked import Masking
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid, VirtualClock
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.runner import build_world, local_grid
from tests import tiny

CENTROIDS = np.full((3, tiny.CLASSES), 0.1, dtype=np.float32) + np.eye(3, tiny.CLASSES, dtype=np.float32) * 0.4
POOL = np.repeat(np.arange(5), 4).astype(np.int32)
KINDS = {
    "cooccurrence": ("usage", {}),
    "usage": ("usage", {"centroids": CENTROIDS}),
    "scores": ("scores", {"pool": POOL}),
}


@pytest.fixture(scope="module")
def world(bars, tmp_path_factory):
    config = load_config(None, tiny.overrides(*bars, "scores.images=10"))
    return build_world(config, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def fleet(world):
    return Fleet.of(world.directory, world.config, world.base)


def spec_of(world, name, blocks=1, **changes):
    budget = SumBudget(world.config, world.base.groups, world.phones)
    step = next(step for step in steps(world.config) if step.name == name)
    return replace(budget.spec(step, blocks), **changes)


def courier(world, fleet):
    grid = LocalGrid(lambda message, context: message, world.phones)
    return FleetCourier(grid, "a" * 64, world.config.rounds, None, fleet=fleet, seed=(0,))


def nodes(world):
    return range(FIRST_NODE, FIRST_NODE + world.phones)


@pytest.mark.parametrize("name", KINDS)
def test_cached_vectors_are_the_phones_own(name, world, fleet):
    kind, tensors = KINDS[name]
    found = fleet.vectors(kind, range(world.phones), tensors)
    spec = spec_of(world, "usage-0", length=found.shape[1])
    request = SumRequest(run="a" * 64, round=1, request="b" * 64, kind=kind, sum=SumFields.of(spec))
    own = [
        simulated_phone(world.directory, world.config, world.base, n).learner().vector(request, tensors)
        for n in range(world.phones)
    ]
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-6)  # images went through the network in other batches
    assert len(np.unique(found, axis=0)) > 5
    np.testing.assert_array_equal(fleet.vectors(kind, [7, 2], tensors), found[[7, 2]])


def test_a_log_that_cannot_be_foreseen_is_refused(world):
    corrected = world.config.model_copy(update={"usage": world.config.usage.model_copy(update={"corrections": 0.5})})
    with pytest.raises(ConfigError, match="corrections must be 0"):
        Fleet.of(world.directory, corrected, world.base)


@pytest.mark.slow
def test_a_sum_is_that_of_masked_phones_which_are_run(world, fleet):
    spec = spec_of(world, "usage-1", 3, noise_multiplier=0.0)
    open_phones = world.config.privacy.model_copy(update={"noise": False})
    quiet = replace(world, config=world.config.model_copy(update={"privacy": open_phones}))
    clock = VirtualClock()
    masking = Masking(0.1, 0.05, lambda number: f"{number:032x}")
    masked = Courier(
        local_grid(quiet, clock), "a" * 64, world.config.rounds, masking, sleep=clock.sleep, clock=clock.time
    )
    asked = (1, "usage", spec, {"centroids": CENTROIDS}, list(nodes(world)))
    expected, _ = masked.sum(*asked)
    found, tally = courier(world, fleet).sum(*asked)
    np.testing.assert_allclose(found, expected, atol=2 / spec.scale)  # two phones beside a quantum's edge at most
    assert tally.replies == world.phones


def test_a_rotated_sum_with_noise_comes_back_around_the_vectors(world, fleet):
    spec = spec_of(world, "scores-0", 5)
    total, _ = courier(world, fleet).sum(1, "scores", spec, {"pool": POOL}, nodes(world))
    error = total - fleet.vectors("scores", range(world.phones), {"pool": POOL}).sum(0)
    assert spec.rotated
    # The mean square of 36 entries lies within 40 % to 200 % of the variance but for one seed in 10,000.
    assert 0.4 < float((error**2).mean()) / spec.deviation**2 < 2


def test_noise_of_all_phones_is_distributed_as_their_shares():
    spec = SimpleNamespace(share_variance=1.7, length=6000)
    rng = np.random.default_rng(0)
    together = noise_of(7, spec, rng)
    one_by_one = sum(discrete_gaussian(1.7, 6000, np.random.default_rng(1 + phone)) for phone in range(7))
    assert ks_2samp(together, one_by_one).pvalue > 1e-4  # so large a distance has that probability
    assert abs(together.var() / (7 * 1.7) - 1) < 0.1  # five standard errors


def test_malicious_vectors_weigh_what_one_phone_may_before_the_clip_and_are_found_out_after_it(world, fleet):
    spec = spec_of(world, "usage-1", 3, noise_multiplier=0.0)

    def lie(kind, numbers, vectors):
        assert kind == "usage"
        out = vectors.copy()
        out[numbers == 4] = 0
        out[numbers == 4, 0] = 1e6 * spec.scale
        return out

    def total(**alter):
        phones, rng = np.arange(world.phones), np.random.default_rng(0)
        return fleet_sum(fleet, "usage", spec, {"centroids": CENTROIDS}, phones, rng, **alter)

    own = fleet.vectors("usage", [4], {"centroids": CENTROIDS})[0]
    lied = total(before_clip=lie) - total()
    np.testing.assert_allclose(lied, np.eye(len(own))[0] * spec.clip - own, atol=2 / spec.scale)
    with pytest.raises(PrivacyError, match="does not clip"):
        plausible.check(total(after_clip=lie), spec, world.phones)
