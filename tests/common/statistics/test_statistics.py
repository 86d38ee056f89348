"""Vectors that phones add up: their norms, which the noise is sized for, and their inverses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError, WireError
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.preference import cluster_means, layer_slices, normalise
from fedcaptor.common.statistics import (
    COOCCURRENCE,
    LOOK,
    MOMENTS,
    OUTCOME,
    OUTCOME_FIGURES,
    SCORES,
    TOPICS,
    USAGE,
    FilterScores,
    Precision,
    Statistic,
    asked,
    in_block,
    kinds,
    nearest,
    outcome_means,
    register,
    registered,
)
from fedcaptor.common.statistics.scores import scores_vector, unit_blocks
from fedcaptor.common.statistics.usage import cooccurrence, cooccurrence_matrix

SHARES = arrays.arrays(float, st.integers(1, 12), elements=st.floats(0, 1e6))


def groups_of(channels: list[int], classes: int) -> ChannelGroups:
    layers = [Group(f"g{i}", count, (), ()) for i, count in enumerate(channels)]
    tensors = {"norm.running_mean": (2,), "norm.running_var": (2,)}
    return ChannelGroups("by hand", (1, 1, 1), (*layers, Group("classes", classes, (), (), output=True)), (), tensors)


def test_cooccurrence_by_hand() -> None:
    vector = cooccurrence(np.array([0.6, 0.4, 0]))
    np.testing.assert_allclose(vector, [0.36, 2**0.5 * 0.24, 0, 0.16, 0, 0])
    np.testing.assert_allclose(cooccurrence_matrix(vector, 3), [[0.36, 0.24, 0], [0.24, 0.16, 0], [0, 0, 0]])


@given(SHARES)
def test_cooccurrence_has_the_norm_of_its_matrix_and_an_inverse(counts: np.ndarray) -> None:
    usage = counts / max(counts.sum(), 1e-12)
    vector = cooccurrence(usage)
    assert np.linalg.norm(vector) <= USAGE.clip + 1e-9
    np.testing.assert_allclose(cooccurrence_matrix(vector, len(usage)), np.outer(usage, usage), atol=1e-12)


def test_nearest_and_its_block() -> None:
    centroids = np.array([[1.0, 0], [0.4, 0.6], [0, 1.0]])
    usage = np.array([0.3, 0.7])
    assert nearest(usage, centroids) == 1
    np.testing.assert_array_equal(in_block(usage, 1, 3), [0, 0, 0.3, 0.7, 0, 0])


@given(arrays.arrays(float, st.integers(1, 6), elements=st.floats(0, 1)), st.integers(1, 8), st.data())
def test_a_block_holds_all_there_is(values: np.ndarray, blocks: int, data: st.DataObject) -> None:
    block = data.draw(st.integers(0, blocks - 1))
    vector = in_block(values, block, blocks).reshape(blocks, -1)
    np.testing.assert_array_equal(vector[block], values)
    assert np.count_nonzero(vector) == np.count_nonzero(values)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_an_outcome_is_within_its_clip(macs: float, escalated: float, parameters: float) -> None:
    """At its largest: of a phone that keeps the full model, and of one whose submodel costs less than that."""
    ones = dict.fromkeys(OUTCOME_FIGURES[1:], 1.0)
    full = ones | {"escalated": 0.0, "personal": 0.0}
    own = ones | {"macs": macs, "escalated": escalated * (1 - macs), "parameters": parameters}
    for figures in (full, own):
        vector = OUTCOME.vector(Phone(GROUPS, [0.1, 0.6, 0.3], **figures), CENTROIDS)
        assert np.linalg.norm(vector) <= OUTCOME.clip


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([1e-300, 1e-6, 1.0, 1e30]),
)
def test_scores_are_within_their_clip_and_have_a_mean(
    channels: list[int], classes: int, seed: int, size: float
) -> None:
    """One phone's mean is its own scores on the classes that it has, whatever their size."""
    rng = np.random.default_rng(seed)
    groups = groups_of(channels, classes)
    scores = size * rng.exponential(size=(sum(channels), classes))
    present = rng.random(classes) < 0.6
    assignment = np.concatenate([rng.integers(2, size=c) + 2 * i for i, c in enumerate(channels)])
    clusters = int(assignment.max()) + 1
    blocks = normalise([scores[rows] * present for rows in layer_slices(groups)])
    pooled = unit_blocks(cluster_means(blocks, assignment, clusters), assignment, groups)
    vector = scores_vector(pooled, present, len(channels))
    assert len(vector) == SCORES.length(groups, clusters)
    assert np.linalg.norm(vector) <= SCORES.clip + 1e-6  # profiles are in single precision
    mean, presence = SCORES.decode(vector, groups)
    np.testing.assert_allclose(mean, pooled * present, atol=1e-6)
    np.testing.assert_array_equal(presence > 0, present)


def test_unit_blocks_are_one_norm_a_layer_and_class() -> None:
    groups = groups_of([2, 1], 2)
    pooled = np.array([[3.0, 0], [4.0, 0], [0.5, 2.0]])
    found = unit_blocks(pooled, np.array([0, 1, 2]), groups)
    np.testing.assert_allclose(found, [[0.6, 0], [0.8, 0], [1, 1]])


class Phone:
    """A phone that statistics ask, its answers given by hand."""

    def __init__(self, groups: ChannelGroups, usage: list[float], scores: FilterScores | None = None, **outcome: float):
        self.groups, self._usage, self._scores, self._outcome = groups, np.array(usage), scores, outcome

    def usage(self) -> np.ndarray:
        return self._usage

    def filter_scores(self) -> FilterScores | None:
        return self._scores

    def outcome(self) -> dict[str, float] | None:
        return self._outcome or None

    def look(self) -> np.ndarray | None:
        return np.arange(6.0) if self._outcome else None

    def moments(self) -> np.ndarray | None:
        return np.full(4, 0.3)

    def images(self) -> np.ndarray:
        return np.zeros((0, 1, 1, 1), np.uint8)


CENTROIDS = {"centroids": np.array([[1.0, 0, 0], [0, 0.5, 0.5]], np.float32)}
GROUPS = groups_of([2, 1], 3)
FIGURES = {
    "agreement_cluster": 0.9,
    "agreement": 0.8,
    "macs": 0.3,
    "parameters": 0.2,
    "escalated": 0.1,
    "personal": 1.0,
    "drifted": 1.0,
}


def test_usage_stands_in_the_block_of_the_nearest_centroid_and_is_decoded_by_block() -> None:
    vector = USAGE.vector(Phone(GROUPS, [0.1, 0.6, 0.3]), CENTROIDS)
    np.testing.assert_array_equal(USAGE.decode(vector, GROUPS), [[0, 0, 0], [0.1, 0.6, 0.3]])


def test_usage_of_several_interests_is_shared_out_among_topics_and_adds_up_to_one_phone() -> None:
    topics = {"topics": np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]], np.float32)}
    found = TOPICS.decode(TOPICS.vector(Phone(GROUPS, [0.4, 0.5, 0.1]), topics), GROUPS)
    np.testing.assert_allclose(found.sum(0), [0.4, 0.5, 0.1])
    np.testing.assert_allclose(found, [[0.4, 0.4, 0], [0, 0.1, 0.1]], atol=1e-6)  # four fifths are of the first
    assert not TOPICS.vector(Phone(GROUPS, [0, 0, 0]), topics).any()


def test_classes_that_are_counted_together_make_a_shorter_vector() -> None:
    coarse = {"coarse": np.array([1, 0, 1], np.int32)}
    vector = COOCCURRENCE.vector(Phone(GROUPS, [0.2, 0.5, 0.3]), coarse)
    assert len(vector) == COOCCURRENCE.length(GROUPS, 2)
    np.testing.assert_allclose(COOCCURRENCE.decode(vector, GROUPS), np.full((2, 2), 0.25))


def test_an_outcome_stands_in_the_same_block_and_nobody_is_counted_before_the_first() -> None:
    usage = [0.1, 0.6, 0.3]
    sums = OUTCOME.decode(OUTCOME.vector(Phone(GROUPS, usage, **FIGURES), CENTROIDS), GROUPS)
    np.testing.assert_array_equal(sums, [[0] * 8, [1.0, *FIGURES.values()]])
    assert outcome_means(2 * sums) == {"phones": 1.0, **FIGURES}
    nobody = OUTCOME.decode(OUTCOME.vector(Phone(GROUPS, usage), CENTROIDS), GROUPS)
    assert not nobody.any()
    assert outcome_means(nobody) is None
    assert outcome_means(None) is None


def test_a_phone_that_cannot_score_adds_zeros_of_the_same_length() -> None:
    assignment = {"pool": np.array([0, 1, 2], np.int32)}
    found = FilterScores(np.ones((3, 3)), np.array([True, False, True]))
    scored, silent = (SCORES.vector(Phone(GROUPS, [1, 0, 0], s), assignment) for s in (found, None))
    assert len(scored) == len(silent) == SCORES.length(GROUPS, 3)
    assert scored.any()
    assert not silent.any()


@pytest.mark.parametrize(
    ("statistic", "tensors", "reason"),
    [
        (USAGE, {}, "missing_tensor"),
        (OUTCOME, {}, "missing_tensor"),
        (USAGE, {"centroids": np.zeros((2, 4))}, "wrong_shape"),
        (OUTCOME, {"centroids": np.zeros((0, 3))}, "wrong_shape"),
        (TOPICS, {"topics": np.array([[1.0, 0.5, -0.5]])}, "wrong_shape"),
        (TOPICS, {"topics": np.zeros((2, 2))}, "wrong_shape"),
        (COOCCURRENCE, {"coarse": np.array([0, 1])}, "wrong_shape"),
        (COOCCURRENCE, {"coarse": np.array([0, 1, 3])}, "wrong_shape"),
        (COOCCURRENCE, {"coarse": np.array([0, -1, 0])}, "wrong_shape"),
        (SCORES, {}, "wrong_shape"),
        (SCORES, {"pool": np.array([0, 1])}, "wrong_shape"),
        (SCORES, {"pool": np.array([0, -1, 0])}, "wrong_shape"),
        (SCORES, {"pool": np.array([0, 1, 9])}, "oversized"),
        (LOOK, {"look_source": np.zeros(6), "looks": np.zeros((2, 5))}, "wrong_shape"),
        (LOOK, {"look_source": np.zeros(6), "looks": np.zeros((9, 6))}, "wrong_shape"),
        (LOOK, {"look_source": np.zeros(5), "looks": np.zeros((2, 6))}, "wrong_shape"),
        (MOMENTS, {"looks": np.zeros((2, 6)), "expected": np.zeros((1, 4))}, "wrong_shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(statistic: Statistic, tensors: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        statistic.vector(Phone(GROUPS, [1, 0, 0]), tensors)


@pytest.mark.parametrize("statistic", registered(), ids=lambda statistic: statistic.name)
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_vector_has_the_length_that_the_budget_is_planned_for(statistic: Statistic, blocks: int) -> None:
    tensors = {
        "centroids": np.full((blocks, 3), 1 / 3),
        "topics": np.full((blocks, 3), 1 / 3),
        "pool": np.minimum(np.arange(3), blocks - 1),
        "look_source": np.zeros(6),
        "looks": np.zeros((blocks, 6)),
        "expected": np.zeros((blocks, 4)),
    }
    scores = FilterScores(np.ones((3, 3)), np.ones(3, bool))
    vector = statistic.vector(Phone(GROUPS, [0.2, 0.5, 0.3], scores, **FIGURES), tensors)
    assert vector.shape == (statistic.length(GROUPS, blocks),)
    assert len(vector) <= statistic.longest(GROUPS)
    assert np.linalg.norm(vector) <= statistic.clip + 1e-9


def test_looks_and_moments_are_differences_in_the_block_of_the_nearest_look_and_count_phones() -> None:
    looks = {"looks": np.stack([np.full(6, 9.0), np.arange(6) + 0.5]), "look_source": np.arange(6) - 1.0}
    phone = Phone(GROUPS, [1, 0, 0], **FIGURES)
    phones, sums = LOOK.decode(LOOK.vector(phone, looks), GROUPS)
    np.testing.assert_allclose(phones, [0, 1])
    np.testing.assert_allclose(sums, [[0] * 6, [1] * 6])
    expected = {**looks, "expected": np.stack([np.zeros(4), np.full(4, 0.2)])}
    phones, sums = MOMENTS.decode(MOMENTS.vector(phone, expected), GROUPS)
    np.testing.assert_allclose(phones, [0, 1])
    np.testing.assert_allclose(sums, [[0] * 4, [0.1] * 4])


@pytest.mark.parametrize("size", [1.0, 1e3, 1e30])
def test_no_look_and_no_moments_weigh_more_than_a_phone(size: float) -> None:
    """Whatever photos a phone has: what it adds has norm 1 at most, the entry that counts it included."""
    phone = Phone(GROUPS, [1, 0, 0], **FIGURES)
    phone.look, phone.moments = lambda: np.full(6, size), lambda: np.full(4, -size)  # type: ignore[method-assign]
    tensors = {"looks": np.zeros((2, 6)), "look_source": np.zeros(6), "expected": np.zeros((2, 4))}
    for statistic in (LOOK, MOMENTS):
        assert np.linalg.norm(statistic.vector(phone, tensors)) <= 1 + 1e-9


def test_kind_and_tensors_of_a_request_name_its_statistic() -> None:
    assert kinds() == ("look", "moments", "usage", "scores", "outcome")  # docs/messages.md
    assert asked("usage", ()) is COOCCURRENCE
    assert asked("usage", ("centroids",)) is USAGE
    assert asked("usage", ("topics",)) is TOPICS
    assert asked("usage", ("coarse",)) is COOCCURRENCE
    assert asked("scores", ("pool",)) is SCORES
    with pytest.raises(WireError, match="missing_tensor"):
        asked("outcome", ())


class Taken(type(USAGE)):  # type: ignore[misc]  # the class of a registered statistic, under its name
    """Usage a second time."""


def test_a_name_is_registered_once() -> None:
    before = registered()
    register(USAGE)
    with pytest.raises(ConfigError, match="'usage' of kind 'usage' is taken by 'usage': rename it"):
        register(Taken())
    assert registered() == before


def test_each_says_how_precise_its_figure_is() -> None:
    for statistic in registered():
        found = statistic.precision(Config(), GROUPS, 4)
        assert isinstance(found, Precision)
        assert found.per_entry > 0 < found.target
