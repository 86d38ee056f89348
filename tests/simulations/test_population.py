"""Laws of who meets what, owners and partitions, and the files that a population is made of."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.common.config import Population, load_config
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.data.splits import pool
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.simulations.habits import draw_habits
from fedcaptor.simulations.owners import by_round, natural_owners, partitioned, shares_of
from fedcaptor.simulations.phones import MappedFeed
from fedcaptor.simulations.population import _positions, prepare

CLASSES = 6
needs_partitioners = pytest.mark.skipif(
    importlib.util.find_spec("flwr_datasets") is None, reason="the extra `partitioners` is not installed"
)


def some_data(images=600, owners=None, seed=0):
    """Images whose first bytes are their number, labels in turn."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (images, 4, 4, 1), dtype=np.uint8)
    x[:, 0, 0, 0], x[:, 0, 1, 0] = np.arange(images) // 256, np.arange(images) % 256
    owner = None if owners is None else rng.integers(owners, size=images)
    return Dataset("some", x, np.arange(images) % CLASSES, tuple("abcdef"), owner)


def number(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]


def prepared(directory, data, rounds=1, seed=0, corrections=0.0, **keys):
    return prepare(directory, data, np.arange(len(data.y)), Population(**keys), rounds, seed, corrections)


def images_of(directory, rounds, phones):
    """What each phone meets by part [rounds][phones]: image numbers."""
    test, images = np.load(directory / "oracle/test.npy"), np.load(directory / "oracle/images.npy")
    met = {part: [] for part in ("use", "check", "test")}
    for round in range(1, rounds + 1):
        feeds = [MappedFeed(directory / "population", phone) for phone in range(phones)]
        met["use"].append([number(feed.use(round)) for feed in feeds])
        met["check"].append([number(feed.check(round)) for feed in feeds])
        met["test"].append([number(images[row[row >= 0]]) for row in test[round - 1]])
    return met


@settings(max_examples=40)
@given(
    law=st.sampled_from(["habits", "zipf", "dirichlet"]),
    groups=st.integers(1, 6),
    fewest=st.integers(1, CLASSES),
    more=st.integers(0, 3),
    concentration=st.sampled_from([1e-4, 0.3, 50.0]),
    seed=st.integers(0, 2**32),
)
def test_shares_sum_to_one_over_as_many_classes_as_asked(law, groups, fewest, more, concentration, seed):
    most = min(CLASSES, fewest + more)
    asked = Population(
        law=law, groups=groups, classes_min=fewest, classes_max=most, phones=40, concentration=concentration
    )
    shares = draw_habits(asked, CLASSES, 2, seed)
    assert shares.shape == (2, 40, CLASSES)
    np.testing.assert_allclose(shares.sum(2), 1.0)
    own = (shares > 0).sum(2)
    assert own.min() >= fewest
    assert own.max() <= most
    assert (shares[0] == shares[1]).all()
    assert (draw_habits(asked, CLASSES, 2, seed) == shares).all()
    if law != "zipf":
        assert shares[shares > 0].min() >= 0.1 / most - 1e-12


def test_zipf_shares_by_hand():
    asked = Population(law="zipf", classes_min=3, classes_max=3, exponent=2.0, phones=30)
    shares = draw_habits(asked, CLASSES, 1, 0)[0]
    np.testing.assert_allclose(np.sort(shares, 1)[:, ::-1][:, :3], np.tile([36 / 49, 9 / 49, 4 / 49], (30, 1)))
    even = draw_habits(asked.model_copy(update={"exponent": 0.0}), CLASSES, 1, 0)[0]
    np.testing.assert_allclose(even[even > 0], 1 / 3)


def test_groups_have_favourites_and_dirichlet_owners_have_none():
    """Two groups of three favourites that divide six classes; owners of three classes take all theirs."""
    asked = Population(groups=2, classes_min=3, classes_max=3, typical=1.0, phones=60)
    sets = {tuple(np.flatnonzero(row)) for row in draw_habits(asked, CLASSES, 1, 3)[0]}
    assert len(sets) == 2
    assert sorted(c for own in sets for c in own) == list(range(CLASSES))
    free = draw_habits(asked.model_copy(update={"law": "dirichlet"}), CLASSES, 1, 3)[0]
    assert len({tuple(np.flatnonzero(row)) for row in free}) > 2


def test_owners_have_two_interests_each():
    asked = Population(law="interests", groups=3, classes_max=2, concentration=1e6, phones=300)
    shares = draw_habits(asked, CLASSES, 1, 0)[0]
    np.testing.assert_allclose(shares.sum(1), 1)
    own = shares > 0
    assert len({tuple(row) for row in own}) <= 3  # pairs of three interests
    assert own.sum(1).max() <= 4


@pytest.mark.parametrize("law", ["habits", "zipf", "dirichlet", "interests"])
def test_habits_change_once_for_the_share_that_drifts(law):
    asked = Population(law=law, drift_round=3, drift_share=0.5, phones=400)
    shares = draw_habits(asked, CLASSES, 4, 1)
    assert (shares[0] == shares[1]).all()
    assert (shares[2] == shares[3]).all()
    changed = (shares[1] != shares[2]).any(1).mean()
    assert 0.35 < changed < 0.65  # fails with probability below 1e-8


def test_more_classes_than_the_data_has_are_refused():
    with pytest.raises(ConfigError, match="classes_max is 9, the data has 6"):
        draw_habits(Population(classes_max=9), CLASSES, 1, 0)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 5), min_size=4, max_size=4), seed=st.integers(0, 1000), strange=st.floats(0, 1))
def test_drawn_images_are_of_classes_that_the_mixture_holds(sizes, seed, strange):
    sizes = np.array([1, *sizes])
    shares = np.tile([0.5, 0.5, 0, 0, 0], (50, 1))
    drawn = _positions(shares, sizes, 20, strange, np.random.default_rng(seed))
    label = np.searchsorted(np.cumsum(sizes), drawn, side="right")
    assert drawn.min() >= 0
    assert drawn.max() < sizes.sum()
    if strange == 0:
        assert set(label.ravel()) <= {0, 1}
    if strange == 1 and sizes[2:].sum():
        assert set(label.ravel()) <= {2, 3, 4}


def test_drawn_classes_come_at_their_shares():
    shares = np.array([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    drawn = _positions(shares, np.array([2, 3, 5]), 20_000, 0.2, np.random.default_rng(0))
    found = [np.bincount(np.searchsorted([2, 5, 10], row, side="right"), minlength=3) / 20_000 for row in drawn]
    np.testing.assert_allclose(found, [[0.56, 0.24, 0.2], [0.1, 0.1, 0.8]], atol=0.02)  # 0.02 is over 5 deviations
    assert set(drawn[1]) == set(range(10))


def test_a_part_without_own_images_is_refused_without_naming_classes():
    with pytest.raises(DataError, match="own class of 1 phones") as caught:
        _positions(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([3, 0]), 5, 0.0, np.random.default_rng(0))
    assert "[" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"law": "habits"}, {"law": "zipf"}, {"law": "owners"}])
def test_phones_never_share_images_across_parts_and_a_seed_decides(tmp_path, keys):
    data = some_data(owners=9)
    keys = {"phones": 9, "use_images": 15, "check_images": 9, "test_images": 8, **keys}
    phones = prepared(tmp_path / "a", data, rounds=2, **keys)
    met = images_of(tmp_path / "a", 2, phones)
    parts = {part: set(np.concatenate([row for rows in found for row in rows])) for part, found in met.items()}
    expected = {part: set(numbers) for part, numbers in pool(data, np.arange(600)).items()}
    assert all(parts[part] <= expected[part] for part in parts)
    assert all(len(row) <= 15 for rows in met["use"] for row in rows)
    prepared(tmp_path / "b", data, rounds=2, **keys)
    prepared(tmp_path / "c", data, rounds=2, seed=1, **keys)
    files = ("population/use.npy", "population/check.npy", "oracle/test.npy", "oracle/shares.npy")
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    assert (tmp_path / "a" / files[0]).read_bytes() != (tmp_path / "c" / files[0]).read_bytes()


def test_owners_correct_the_configured_share_of_their_images(tmp_path):
    data = some_data()
    prepared(tmp_path, data, rounds=2, corrections=0.3, phones=40, use_images=50)
    corrected = []
    for phone in range(40):
        feed = MappedFeed(tmp_path / "population", phone)
        given_, truth = feed.corrections(2), number(feed.use(2)) % CLASSES
        assert (given_[given_ >= 0] == truth[given_ >= 0]).all()
        corrected.append((given_ >= 0).mean())
    assert 0.25 < np.mean(corrected) < 0.35  # of 2000 images: five deviations


def test_small_owners_join_the_next_and_the_last_the_one_before():
    owner = np.repeat([3, 5, 6, 9, 11], [12, 4, 9, 20, 2])
    phones = natural_owners(owner, 10)
    assert [int(phones[owner == o][0]) for o in (3, 5, 6, 9, 11)] == [0, 1, 1, 2, 2]
    assert natural_owners(owner, 2).tolist() == [0] * 12 + [1] * 13 + [-1] * 22
    with pytest.raises(DataError, match="fewer than 12"):
        natural_owners(np.zeros(11, dtype=np.int64), 5)


def test_rarest_classes_are_out_of_set_by_hand():
    phone_of = np.array([0] * 20 + [1] * 4 + [-1] * 2)
    labels = np.array([0] * 12 + [1] * 7 + [2] + [2, 2, 0, 1] + [0, 0])
    np.testing.assert_allclose(shares_of(phone_of, labels, 3, 0.05), [[12 / 19, 7 / 19, 0], [0.25, 0.25, 0.5]])
    np.testing.assert_allclose(shares_of(phone_of, labels, 3, 0.0)[0], [0.6, 0.35, 0.05])
    np.testing.assert_allclose(shares_of(phone_of, labels, 3, 1.0).sum(1), 1.0)


def test_rounds_take_successive_images_of_an_owner_and_begin_again():
    images, phone_of = np.arange(100, 112), np.array([0] * 5 + [2] * 2 + [-1] * 5)
    index = by_round(images, phone_of, 3, 3, 5, np.random.default_rng(0))
    assert index.shape == (5, 3, 3)
    assert sorted(set(index[:, 0].ravel().tolist())) == [100, 101, 102, 103, 104]
    assert (np.bincount(index[:, 0].ravel())[100:] == 3).all()  # 5 rounds of 3 go through 5 images three times
    assert (index[:, 1] == -1).all()
    assert all(sorted(row) == [-1, 105, 106] for row in index[:, 2].tolist())


def test_natural_owners_keep_their_own_images_and_the_number_of_phones_is_limited(tmp_path):
    data = some_data(owners=8)
    keys = {"law": "owners", "use_images": 500, "check_images": 500, "test_images": 500}
    assert prepared(tmp_path / "a", data, phones=100, **keys) == 8
    met = images_of(tmp_path / "a", 1, 8)
    for phone in range(8):
        mine = np.concatenate([met[part][0][phone] for part in met])
        assert sorted(mine) == np.flatnonzero(data.owner == phone).tolist()
    assert prepared(tmp_path / "b", data, phones=3, **keys) == 3


def test_owners_need_data_with_owners(tmp_path):
    with pytest.raises(ConfigError, match="no owners"):
        prepared(tmp_path, some_data(), law="owners")


@pytest.mark.parametrize("law", ["owners", "partitioner"])
def test_fixed_images_do_not_drift(law):
    with pytest.raises(ConfigError, match=r"drift_round is 2.*set it to 0"):
        load_config(None, [f"population.law={law}", "population.drift_round=2"])


@pytest.mark.slow
@needs_partitioners
@pytest.mark.parametrize(
    ("name", "arguments", "unused"),
    [
        ("DirichletPartitioner", {"alpha": 1, "min_partition_size": 1, "self_balancing": True}, 0),
        ("IidPartitioner", {}, 0),
        ("PathologicalPartitioner", {"num_classes_per_partition": 2}, 0),
        ("ShardPartitioner", {"num_shards_per_partition": 3}, 0),
        ("SizePartitioner", {"partition_sizes": [10, 20]}, 570),
        ("NaturalIdPartitioner", {"partition_by": "owner"}, 0),
    ],
)
def test_a_partitioner_gives_every_image_to_one_phone(tmp_path, name, arguments, unused):
    data = some_data(owners=8)
    keys = {"law": "partitioner", "partitioner": name, "partitioner_arguments": arguments, "phones": 8}
    phone_of = partitioned(data.y, data.owner, Population(**keys), 0)
    assert (phone_of < 0).sum() == unused
    assert (partitioned(data.y, data.owner, Population(**keys), 0) == phone_of).all()
    keys |= {"use_images": 600, "check_images": 600, "test_images": 600}
    phones = prepared(tmp_path, data, **keys)
    assert phones == len(set(phone_of[phone_of >= 0]))
    met = images_of(tmp_path, 1, phones)
    mine = [np.concatenate([met[part][0][phone] for part in met]) for phone in range(phones)]
    assert sorted(np.concatenate(mine)) == np.flatnonzero(phone_of >= 0).tolist()
    assert all((phone_of[images] == phone).all() for phone, images in enumerate(mine))
    np.testing.assert_allclose(np.load(tmp_path / "oracle/shares.npy").sum(2), 1.0)


@pytest.mark.slow
@needs_partitioners
def test_a_seed_decides_a_partition():
    asked = Population(law="partitioner", partitioner="IidPartitioner", phones=4)
    labels = some_data().y
    assert (partitioned(labels, None, asked, 0) != partitioned(labels, None, asked, 1)).any()


@needs_partitioners
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Dirichlet", {}, "known are DirichletPartitioner, Exp"),
        ("IdToSizeFncPartitioner", {}, "known are"),
        ("DirichletPartitioner", {"beta": 1}, "beta is unknown, DirichletPartitioner takes alpha"),
        ("DirichletPartitioner", {"alpha": 1, "num_partitions": 3}, "num_partitions is unknown"),
        ("DirichletPartitioner", {}, "missing.*'alpha'.*change"),
        ("DirichletPartitioner", {"alpha": -1}, "greater than zero.*change"),
        ("IidPartitioner", {"alpha": 1}, "IidPartitioner takes none"),
        ("NaturalIdPartitioner", {"partition_by": "owner"}, "owner.*change"),
        ("LinearPartitioner", {}, "lower population.phones|change population.phones"),
    ],
)
def test_partitioners_and_arguments_that_do_not_fit_are_refused(name, arguments, message):
    asked = Population(law="partitioner", partitioner=name, partitioner_arguments=arguments, phones=200)
    with pytest.raises(ConfigError, match=message):
        partitioned(some_data().y, None, asked, 0)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[partitioners\]'"):
        partitioned(some_data().y, None, Population(law="partitioner"), 0)


SCENARIOS = sorted((Path(__file__).parents[2] / "simulations/scenarios").glob("*.toml"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_loads(path):
    assert load_config(path).population.phones >= 1


def test_scenarios_were_found():
    assert {"demo", "drift", "faults", "owners", "partitioner", "thousand"} <= {path.stem for path in SCENARIOS}
