"""What malicious clients send, that they stay below the bound just so, and what rows hold."""

import numpy as np
import pytest

from benchmarks.fleet_server import courier_args
from benchmarks.fleet_sums import Fleet
from benchmarks.malicious import ATTACKS, MaliciousCourier, malicious_clients, poisoned, undetected_norm
from benchmarks.median_sums import MedianSpec
from benchmarks.pages.poisoning import render
from benchmarks.poisoning import Poisoning, PoisoningMeasurement, aggregate, cohort_of, serve_attacked, shares_of
from benchmarks.record import Record, rounded
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.statistics import in_block
from fedcaptor.common.statistics.scores import scores_mean
from fedcaptor.common.statistics.usage import cooccurrence
from fedcaptor.server import plausible
from fedcaptor.simulations.runner import build_world
from tests import tiny

SPEC = SumSpec("usage", 6, 1.0, 500.0, 1.5, 100, 90)


def test_attacks_within_the_clip_send_what_one_phone_may():
    usage = np.array([0.7, 0.3, 0.0])
    met = cooccurrence(usage)[None]
    np.testing.assert_array_equal(poisoned("one-class", "usage", met, 3, 2)[0], cooccurrence(np.array([0.0, 0.0, 1.0])))
    block = in_block(usage, 2, 4)[None]
    np.testing.assert_array_equal(poisoned("one-class", "usage", block, 3, 1)[0], in_block(np.eye(3)[1], 2, 4))
    np.testing.assert_array_equal(poisoned("sign-flip", "usage", block, 3, 1), -block)
    scores = poisoned("one-class", "scores", np.zeros((1, 15)), 3, 1)[0]
    mean, presence = scores_mean(scores, 2, 3)
    assert np.linalg.norm(scores) == pytest.approx(1)
    assert (presence > 0).tolist() == [False, True, False]
    assert len(np.unique(mean[:, 1])) == 1


def test_clients_who_know_the_bound_are_just_below_it():
    honest = np.array([30.0, 10.0, 5.0, 0.0, 20.0, 8.0])
    flat = np.full(6, 6**-0.5)
    found = honest + flat * undetected_norm(honest, SPEC, 100)
    noise = 4 * SPEC.deviation / np.sqrt(6)
    plausible.check(found + noise, SPEC, 100)
    with pytest.raises(PrivacyError, match="does not clip"):
        plausible.check(found * 1.2, SPEC, 100)


def test_the_median_of_cohorts_has_the_deviation_that_it_states():
    spec = MedianSpec(**vars(SPEC), cohorts=40)
    rng = np.random.default_rng(0)
    medians = 40 * np.median(rng.normal(0, SPEC.deviation, (40, 4000)), axis=0)
    assert abs(medians.std() / spec.deviation - 1) < 0.06  # 40 sums: 2 % below the limit; five standard errors


def test_malicious_clients_are_nested_and_never_judged():
    few, many = malicious_clients(100, 30, 0.02, 1), malicious_clients(100, 30, 0.2, 1)
    assert (few.sum(), many.sum()) == (2, 20)
    assert many[few].all()
    assert not many[:30].any()
    assert (malicious_clients(100, 30, 0.2, 2) != many).any()


@pytest.fixture(scope="module")
def rows(bars, tmp_path_factory):
    small = tiny.overrides(*bars, "population.phones=60", "clusters.alike=0.01", "privacy.min_cohort=20")
    settings = Poisoning(phones=60, epsilon=200.0, judged=10, images=60, liars="0,0.2", cohorts="0,20")
    folder = tmp_path_factory.mktemp("poisoning")
    measurement = PoisoningMeasurement(settings, folder, lambda name, done, total: None, small)
    return [{**key, **rounded(measurement.measure(key))} for key in settings.row_keys()]


@pytest.mark.slow
def test_rows_hold_the_contract(rows):
    assert [(row["attack"], row["aggregate"]) for row in rows] == [
        (attack, name) for name in ("sum", "median of 20") for attack in ("none", *ATTACKS)
    ]
    for row in rows:
        assert 0.5 < row["accuracy_full_limited"] <= 1
        if row["attack"] == "overshoot":
            assert row["discarded"] == 1
            assert row["centroid_error"] is row["accuracy"] is row["macs_ratio"] is None
        else:
            assert row["discarded"] == 0
            assert row["accuracy"] <= row["served"] <= 1
            assert row["macs_ratio"] <= 0.6
            assert (row["centroid_error"] == 0) == (row["attack"] == "none")


def test_a_median_withstands_one_cohort_with_malicious_clients(bars, tmp_path):
    config = load_config(None, tiny.overrides(*bars, "population.phones=60", "privacy.noise=false"))
    world = build_world(config, tmp_path)
    fleet, one, profiles = Fleet.of(world.directory, config, world.base), np.arange(60) == 59, []

    def served(malicious, attack="none", cohort=0):
        args = courier_args(world, 60)
        courier = MaliciousCourier(**args, fleet=fleet, malicious=malicious, attack=attack, cohort=cohort)
        return serve_attacked(world, courier, profiles, planned=False)

    honest = served(~one & one).served.round
    for attack, discarded in (("overshoot", 1 / 3), ("unclipped", 0)):
        found = served(one, attack, 20)
        assert found.discarded == pytest.approx(discarded)
        assert found.served.round.counts.sum() == pytest.approx(honest.counts.sum(), rel=0.25)
    assert served(one, "overshoot").served is None


def row(attack, liars, name, error, **more):
    figures = {"discarded": 0.0, "clusters": 6, "centroid_error": error, "error_exact": 0.04, "served": 0.9}
    rest = {"accuracy": 0.8, "accuracy_full_limited": 0.97, "macs_ratio": 0.3, "seconds": 1.0}
    return {"phones": 1000, "attack": attack, "liars": liars, "aggregate": name, "seed": 0, **figures, **rest, **more}


def test_the_page_tells_what_is_within_the_limit():
    rows = [row("none", 0.0, name, 0.0, accuracy=0.85) for name in ("sum", "median of 20")]
    rows += [row("unclipped", 0.02, "sum", 0.2), row("unclipped", 0.02, "median of 20", 0.03)]
    rows += [row("unclipped", 0.1, "median of 20", 0.4, accuracy=0.6)]
    ended = dict.fromkeys(("error_exact", "served", "clusters", "accuracy", "macs_ratio"))
    rows += [row("overshoot", 0.1, "sum", None, discarded=1.0, **ended)]
    section = render(Record("poisoning", Poisoning(judged=30).shared(), {}, ["the command"], rows))
    assert (
        "at worst 0.040 within its limit, unclipped by 2 %; at worst 0.040 beyond it, unclipped by 10 %."
        in section.text
    )
    assert "withstands fewer than 3.41 %" in section.text
    assert "| unclipped, 2 % | 0.0 | 0 of 1 | 0.030 | 0.040 | 6 | 90.0 | 80.0 | −5.0 | 30.0 |" in section.text
    assert "unclipped, 10 % (beyond) | 0.0 | 0 of 1 | 0.400 | 0.040 | 6 | 90.0 | 60.0 | −25.0 | 30.0 |" in section.text
    assert "| overshoot, 10 % | 100.0 | 1 of 1 | – | – | – | – | – | – | – |" in section.text
    lines = section.charts["poisoning"].panels[-1].lines
    assert [line.label for line in lines] == ["sum", "median of 20"]


def test_texts_are_read():
    assert [cohort_of(aggregate(m)) for m in (0, 20, 50)] == [0, 20, 50]
    assert shares_of("0,0.1") == [0.0, 0.1]
    for text in ("0.6", "a", "0,0", "-1"):
        with pytest.raises(ConfigError, match="liars is"):
            shares_of(text)


def test_judged_clients_and_cohorts_too_small_are_refused():
    with pytest.raises(ConfigError, match="are honest: lower it"):
        Poisoning(phones=40, judged=40, liars="0.5")
    with pytest.raises(ConfigError, match="must be 0 or from 20"):
        Poisoning(phones=40, judged=10, liars="0", cohorts="10")
