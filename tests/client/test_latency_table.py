"""A latency table from the programs of a network written by hand, run as on a phone, and planned with."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from fedcaptor.client import latency_table
from fedcaptor.client.latency_table import measure_table
from fedcaptor.client.program import example, load
from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, Consumer, Group, Layer, TensorSlice
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.latency_programs import LatencyPrograms
from fedcaptor.common.onnx_graph import IMAGES, SCORES, NetworkGraph
from fedcaptor.common.onnx_latency import latency_programs
from fedcaptor.common.planner import Budget, allocate
from tests.common.small_groups import even_curves

WIDTH = 8

GROUPS = ChannelGroups(
    "by-hand",
    (1, 4, 4),
    (
        Group(
            "a",
            WIDTH,
            (TensorSlice("a.weight", 0), TensorSlice("d.weight", 0), TensorSlice("c.weight", 1, 4)),
            ("a",),
            (Consumer("c", 4),),
        ),
        Group("c", 3, (TensorSlice("c.weight", 0), TensorSlice("c.bias", 0)), ("c",), (), True),
    ),
    (
        Layer("a", 16, 9, 1, WIDTH, None, "a"),
        Layer("d", 4, 9, 1, WIDTH, "a", "a", depthwise=True),
        Layer("c", 1, 1, WIDTH, 3, "a", "c", in_taps=4),
    ),
    {"a.weight": (WIDTH, 1, 3, 3), "d.weight": (WIDTH, 1, 3, 3), "c.weight": (3, 4 * WIDTH), "c.bias": (3,)},
)
GRAPH = NetworkGraph(
    GROUPS,
    (
        helper.make_node("Conv", [IMAGES, "a.weight"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "d.weight"], ["d"], pads=[1] * 4, strides=[2, 2], group=WIDTH),
        helper.make_node("Flatten", ["d"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "c.weight", "c.bias"], [SCORES], transB=1),
    ),
)


@pytest.fixture
def programs() -> LatencyPrograms:
    return latency_programs(GRAPH, 2)


def test_each_point_of_the_grid_is_a_program_of_the_layer_at_that_size(programs: LatencyPrograms) -> None:
    assert {name: (each.inputs, each.outputs) for name, each in programs.layers.items()} == {
        "a": ((1,), (2, 4, 6, 8)),
        "d": ((1,), (2, 4, 6, 8)),
        "c": ((8, 16, 24, 32), (1, 2, 3)),
    }
    found = {}
    for name, layer in programs.layers.items():
        session = load(programs.contents[layer.programs[-1][0]], 1, name)
        (given,) = example(session, name).values()
        (made,) = session.run(None, {session.get_inputs()[0].name: given})
        found[name] = given.shape, made.shape
    assert found == {"a": ((1, 1, 4, 4), (1, 2, 4, 4)), "d": ((1, 2, 4, 4), (1, 2, 2, 2)), "c": ((1, 32), (1, 1))}


def test_programs_come_back_from_their_file_and_are_small(programs: LatencyPrograms, tmp_path: Path) -> None:
    file = tmp_path / "programs.zip"
    file.write_bytes(programs.to_bytes())
    assert LatencyPrograms.read(file) == programs
    assert latency_programs(GRAPH, 2).to_bytes() == file.read_bytes()
    assert max(map(len, programs.contents.values())) < 1500


def test_a_table_adds_what_stands_between_layers_by_what_they_write(
    programs: LatencyPrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {programs.nothing: 1.0, programs.network: 41.0}
    seconds |= {file: 11.0 for layer in programs.layers.values() for row in layer.programs for file in row}
    monkeypatch.setattr(latency_table, "_seconds", lambda programs, name, *_: seconds[name])
    table = measure_table(programs)
    assert table.rest == 1
    # the layers alone take 30 of 40; 10 go to 16 · 8, 4 · 8 and 3 values that they write
    assert [layer.seconds[-1][-1] for layer in table.layers.values()] == pytest.approx(
        [10 + 10 * share / 163 for share in (128, 32, 3)]
    )
    assert table.layers["a"].seconds[0][0] == pytest.approx(10 + 10 * 128 / 163 * 2 / 8)
    seconds[programs.network] = 16.0  # layers alone take twice of what they take inside
    table = measure_table(programs)
    assert [layer.seconds[-1][-1] for layer in table.layers.values()] == pytest.approx([5] * 3)


def test_a_phones_table_is_written_and_planned_with(tmp_path: Path, programs: LatencyPrograms) -> None:
    (tmp_path / "programs.zip").write_bytes(programs.to_bytes())
    words = [str(tmp_path / "programs.zip"), "--out", str(tmp_path / "t.json"), "--sysfs", str(tmp_path)]
    assert latency_table.main(words) == 0
    table = LatencyTable.read(tmp_path / "t.json", GROUPS)
    assert (table.runtime, table.threads, table.model) == ("onnxruntime", 1, "by-hand")
    budget = Budget(latency=1.0, multiple=2, table=table)
    assert allocate(GROUPS, even_curves(GROUPS, a=1.0), np.array([0, 1]), budget).counts()["c"] == 2


def test_with_a_clock_that_ticks_evenly_every_call_takes_one_tick(programs: LatencyPrograms) -> None:
    ticks = count()
    done: list[tuple[int, int]] = []
    table = measure_table(programs, lambda: float(next(ticks)), lambda *step: done.append(step))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert table.rest == 1
    assert all(set(row) == {0.0} for layer in table.layers.values() for row in layer.seconds)


def test_what_holds_no_programs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "junk.zip"
    file.write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.zip holds no programs"):
        LatencyPrograms.read(file)
    assert latency_table.main([str(file), "--out", str(tmp_path / "t.json")]) == 2
    assert "make it with `fedcaptor latency-programs`" in capsys.readouterr().err
