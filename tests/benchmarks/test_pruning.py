"""Rows of the pruning benchmark: their keys, what is shared and resumed, and which images are shown to whom."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from benchmarks import pruning_measurement
from benchmarks.last_call import remembers_last_call
from benchmarks.pruning import Pruning
from benchmarks.pruning_measurement import Accuracy
from benchmarks.record import read_record
from benchmarks.subsets import ImageSplits, Labelled, drawn, given, shown
from fedcaptor.common.errors import ConfigError, DataError
from tests import tiny

CONTRACT = {
    "model",
    "classes",
    "strategy",
    "macs_target",
    "macs_ratio",
    "parameters_ratio",
    "tune",
    "calibration_per_class",
    "accuracy_full",
    "accuracy_full_limited",
    "accuracy_full_limited_recalibrated",
    "accuracy",
    "accuracy_worst_class",
    "seconds",
    "seed",
}


def settings_of(bars, **options):
    given = {"class_sets": "0,3,4", "macs": "0.8", "strategies": "reconstruct,l1", "calibration_per_class": "8"}
    given |= {"tune": "none", "tune_per_class": 40, "tune_seconds": 1.0, "threads": 1, **options}
    return Pruning(model=tiny.MODEL, weights=bars[1], data=str(bars[0]), **given)


def measure(bars, file, **options):
    settings_of(bars, **options).run(file)
    return read_record(file).rows


@pytest.mark.usefixtures("one_thread")
def test_rows_of_an_own_network_hold_what_scripts_read(bars, tmp_path):
    rows = measure(bars, tmp_path / "rows.json", strategies="reconstruct,l1,torch-pruning-group-norm")
    assert [row["strategy"] for row in rows] == ["reconstruct", "l1", "torch-pruning-group-norm"]
    for row in rows:
        assert set(row) >= CONTRACT
        assert (row["classes"], row["macs_target"], row["tune"], row["seed"]) == ([0, 3, 4], 0.8, "none", 0)
        assert 0 < row["macs_ratio"] <= 0.8
        assert 0 <= row["accuracy_worst_class"] <= row["accuracy"] <= 1
        assert 0.8 < row["accuracy_full"] <= row["accuracy_full_limited"]
    assert rows[0]["accuracy"] > 0.8
    assert len({row["accuracy_full_limited_recalibrated"] for row in rows}) == 1


@pytest.mark.usefixtures("one_thread")
def test_tuning_is_the_same_for_all_but_the_second_rate_of_others(bars, tmp_path, monkeypatch):
    calls = []

    def tune(submodel, images, held, *, steps, seconds, clock, rate, seed):
        calls.append((len(images), len(held), seconds, rate, seed))
        return SimpleNamespace(submodel=submodel, before=0.5, after=0.6 + (rate or 0), steps=7, rate=rate or 1e-4)

    monkeypatch.setattr(pruning_measurement, "tune", tune)
    rows = measure(bars, tmp_path / "rows.json", tune="short")
    assert calls == [(120, 12, 1.0, rate, 0) for rate in (None, 5e-4, 1e-3)]
    assert [row["tune_rate"] for row in rows] == [1e-4, 1e-3]
    assert [row["agreement_after"] for row in rows] == [0.6, 0.601]


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_run_goes_on_and_shares_evidence(bars, tmp_path, monkeypatch):
    gathered, file = [], tmp_path / "rows.json"

    def counted(name):
        make = pruning_measurement.STRATEGIES[name]
        return lambda task: (gathered.append(name), make(task))[1]

    monkeypatch.setattr(pruning_measurement, "STRATEGIES", {name: counted(name) for name in ("reconstruct", "l1")})
    measure(bars, file, strategies="reconstruct")
    rows = measure(bars, file, macs="0.8,0.9")
    assert [(row["strategy"], row["macs_target"]) for row in rows] == [
        ("reconstruct", 0.8),
        ("reconstruct", 0.9),
        ("l1", 0.8),
        ("l1", 0.9),
    ]
    assert gathered == ["reconstruct", "reconstruct", "l1"]
    assert len(read_record(file).commands) == 2
    assert str(tmp_path) not in json.dumps(read_record(file).commands)


@pytest.mark.usefixtures("one_thread")
def test_a_budget_that_one_strategy_cannot_reach_ends_nothing(bars, tmp_path, capsys):
    rows = measure(bars, tmp_path / "rows.json", macs="0.8,0.001", strategies="l1")
    assert [row["macs_target"] for row in rows] == [0.8]
    assert "not measured: l1, classes [0, 3, 4]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategies": "l1,l2"}, "strategies is 'l1,l2', must be different ones of reconstruct"),
        ({"tune": "long"}, "must be different ones of none, short"),
        ({"macs": "0.5,1.5"}, r"must be different ratios in \(0, 1\]"),
        ({"class_sets": "0,9"}, "class 9 has no training or no test images"),
        ({"calibration_per_class": "0"}, "must be at least 1"),
        ({"class_sets": None, "classes": "7"}, r"classes is 7, must lie in 1\.\.6"),
    ],
)
def test_what_cannot_be_measured_is_refused(bars, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        measure(bars, tmp_path / "rows.json", **options)


def test_keys_go_draw_by_draw(bars):
    given = {"class_sets": None, "classes": "2,3", "draws": 2, "strategies": "l1,random", "macs": "0.5,0.3"}
    made = settings_of(bars, **given, tune="none,short").row_keys()
    assert len(made) == 2 * 2 * 2 * 2 * 2
    assert [key["draw"] for key in made] == [0] * 16 + [1] * 16
    assert [(k["strategy"], k["macs_target"], k["tune"]) for k in made[:8]] == list(
        itertools.product(["l1", "random"], [0.5, 0.3], ["none", "short"])
    )


@cases(st.integers(1, 5), st.integers(1, 12), st.integers(0, 50))
def test_draws_are_different_sets_and_a_longer_list_begins_alike(size, count, seed):
    available = np.array([1, 4, 5, 8, 9])
    sets = drawn(available, size, count, seed)
    assert drawn(available, size, count + 3, seed)[:count] == sets
    assert all(set(each) <= set(available.tolist()) and len(set(each)) == size for each in sets)
    possible = len(list(itertools.combinations(available, size)))
    assert len(set(sets)) == min(count, possible)


def test_class_sets_as_written():
    assert given("2,1,0;3,5", np.arange(6)) == [(0, 1, 2), (3, 5)]
    for wrong in ("", "a,b", ";"):
        with pytest.raises(ConfigError, match="must be labels such as"):
            given(wrong, np.arange(6))


def pool(per_class):
    """Each image has its own number in its first two pixels."""
    y = np.repeat(np.arange(4), per_class)
    number = np.arange(len(y))
    x = np.zeros((len(y), 2, 1, 1), np.uint8)
    x[:, 0, 0, 0], x[:, 1, 0, 0] = number // 256, number % 256
    return ImageSplits(Labelled(x, y), Labelled(x[:4], y[[0, per_class, 2 * per_class, 3 * per_class]]))


def numbers_of(images):
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 1, 0, 0]).tolist()


@pytest.mark.parametrize(("calibration", "tune"), [(5, 50), (40, 100), (500, 1000), (5, 10)])
def test_held_out_images_are_in_no_other_part(calibration, tune):
    sample = pool(100).sample((1, 3), calibration, tune, (0, 1))
    images, everything, tuning, held = map(numbers_of, (sample.images, sample.everything, sample.tune, sample.held))
    assert not set(held) & (set(images) | set(tuning) | set(everything))
    assert {n // 100 for n in images} == {n // 100 for n in tuning} == {n // 100 for n in held} == {1, 3}
    assert {n // 100 for n in everything} == {0, 1, 2, 3}
    assert len(set(images)) == len(images) == 2 * min(calibration, 100 - len(held) // 2)
    assert len(held) == 2 * -(-min(tune, 100) // 10)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_a_mixture_is_as_large_uneven_and_holds_a_tenth_of_other_classes(concentration):
    found = [pool(600).sample((1, 3), 50, 50, (0, draw), concentration) for draw in range(20)]
    shown = np.array([np.bincount([n // 600 for n in numbers_of(sample.images)], minlength=4) for sample in found])
    assert (shown.sum(1) == 100).all()
    assert (shown[:, [0, 2]].sum(1) == 10).all()
    assert shown[:, [0, 2]].all(1).any()
    rarer = shown[:, [1, 3]].min(1).mean()
    assert rarer < 10 if concentration < 1 else rarer > 40 if concentration > 1 else 10 < rarer < 35
    assert not any(set(numbers_of(sample.images)) & set(numbers_of(sample.held)) for sample in found)
    everyone = pool(600).sample((0, 1, 2, 3), 50, 50, (0, 0), concentration)
    assert len(everyone.images) == 200


def test_images_of_all_classes_are_bounded():
    assert len(pool(600).sample((0,), 500, 10, (0, 0)).everything) == 1000
    assert len(pool(600).sample((0, 1, 2), 500, 10, (0, 0)).everything) == 1500


def test_splits_of_a_data_set_are_followed(tmp_path):
    x, y = tiny.images(60, 0)
    key = np.array(["train", "test", "validation"])[np.arange(60) % 3]
    np.savez(tmp_path / "both.npz", x=x, y=y, split=key)
    both = ImageSplits.load(str(tmp_path / "both.npz"), None)
    assert (both.train.y.tolist(), both.test.y.tolist()) == (y[::3].tolist(), y[1::3].tolist())
    np.savez(tmp_path / "whole.npz", x=x, y=y)
    assert len(ImageSplits.load(str(tmp_path / "both.npz"), str(tmp_path / "whole.npz")).test.y) == 60
    np.savez(tmp_path / "wide.npz", x=np.repeat(x, 2, 2), y=y)
    with pytest.raises(DataError, match="give both in one size"):
        ImageSplits.load(str(tmp_path / "whole.npz"), str(tmp_path / "wide.npz"))
    with pytest.raises(DataError, match=r"the highest label .* is 5, the model has 4 outputs"):
        both.classes(4)


def test_one_source_without_splits_is_divided(bars):
    divided = ImageSplits.load(str(bars[0]), None)
    images = [{image.tobytes() for image in part.x} for part in (divided.train, divided.test)]
    assert not images[0] & images[1]
    assert shown(str(bars[0])) == "bars.npz"


def test_a_few_test_images_a_class_are_the_first_ones():
    y = np.array([2, 0, 2, 0, 0, 2, 1])
    part = Labelled(np.arange(7, dtype=np.uint8).reshape(-1, 1, 1, 1), y)
    judged = ImageSplits(part, part).with_test_images(2)
    assert judged.test.x.ravel().tolist() == [0, 1, 2, 3, 6]
    assert judged.test.y.tolist() == [2, 0, 2, 0, 1]
    assert len(judged.train.y) == 7
    assert len(ImageSplits(part, part).with_test_images(None).test.y) == 7


def test_accuracy_by_hand():
    assert Accuracy.of(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 1])) == Accuracy(0.75, 0.5)


def test_a_value_is_made_again_only_for_other_arguments():
    made = []

    class Maker:
        @remembers_last_call
        def give(self, *given):
            made.append(given)
            return given

    give = Maker().give
    assert [give(1, "a"), give(1, "a"), give(2, "a"), give(1, "a")] == [(1, "a"), (1, "a"), (2, "a"), (1, "a")]
    assert made == [(1, "a"), (2, "a"), (1, "a")]
