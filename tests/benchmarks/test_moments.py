"""The moments command: rows in proportion to the classes, bytes below those of whole triangles."""

from itertools import count

import numpy as np
import pytest

from benchmarks import moments
from benchmarks.moments import MomentsCost
from benchmarks.record import read_record
from benchmarks.results import PAGES
from benchmarks.submodels import random_base
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.moments import Moments
from fedcaptor.common.observations import consumers


def test_rows_grow_with_the_classes(tmp_path, one_thread):
    file = tmp_path / "moments.json"
    MomentsCost(classes="10,100", model="resnet20", needed=2, share=0.9).run(file)
    record = read_record(file)
    first, second = record.rows
    assert (first["classes"], second["classes"]) == (10, 100)
    for row in (first, second):
        assert 0 < row["bytes"] < row["triangle_bytes"]
    (line,) = [line for line in PAGES["moments"](record).text.splitlines() if line.startswith("| 100 |")]
    assert line.endswith(f"| {second['curves_seconds']:.1f} |")
    assert 10 <= second["bytes"] / first["bytes"] < 11  # means of the last layer grow with the classes as well


def test_seconds_are_of_all_classes(one_thread):
    ticks = count()
    settings = MomentsCost(model="resnet20", needed=2, share=0.9)
    row = settings.measure({"classes": 10}, lambda *_: None, clock=lambda: float(next(ticks)))
    pairs = consumers(random_base("resnet20", (3, 32, 32), 0).groups)
    places = len(pairs) + len({consumer.layer for _, consumer in pairs})
    assert row["curves_seconds"] == 1
    assert row["packing_seconds"] == places * 10 / 2  # a second for two classes at each place


def test_a_steeper_spectrum_needs_fewer_bytes():
    def size(steepness):
        return Moments.of(moments.scatter(64, steepness, np.random.default_rng(0))).nbytes

    assert size(3.0) < size(2.0) <= size(0.5)
    assert Moments.of(moments.scatter(64, 1.0, np.random.default_rng(0), constant=True)).rank == 0


def test_numbers_of_classes_are_checked():
    with pytest.raises(ConfigError, match="must be different whole numbers"):
        MomentsCost(classes="10,many").row_keys()
