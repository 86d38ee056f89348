"""Programs measured on this machine, with the kernel's files made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedcaptor.client import measure
from fedcaptor.client.measure import Request, measured, percentile, repeated
from fedcaptor.common.errors import DataError, ModelError
from tests.client.test_sysfs import DISCHARGED, tree

SIDE = 4


def program(path: Path, labels: list[int] | None = None, inputs: int = 1) -> Path:
    """Scores are the mean of an image's first channel, and the contrary: dark images are of the second class."""
    weight = numpy_helper.from_array(np.array([[1.0], [-1.0]], np.float32), "weight")
    bias = numpy_helper.from_array(np.array([-0.5, 0.5], np.float32), "bias")
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
    ]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, SIDE, SIDE]) for name in ("images", "b")]
    made = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "g", given[:inputs], made, [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if labels is not None:
        helper.set_model_props(model, {"labels": json.dumps(labels)})
    onnx.save(model, path)
    return path


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0.0)


def frequencies(kilohertz: int) -> dict[str, str]:
    place = "devices/system/cpu/cpu{}/cpufreq/{}"
    names = ("cpuinfo_max_freq", "scaling_cur_freq")
    return {place.format(core, name): str(kilohertz) for core in os.sched_getaffinity(0) for name in names}


def test_a_phone_that_tells_all_gets_no_note(tmp_path: Path) -> None:
    files = DISCHARGED | frequencies(2_000_000) | {"class/thermal/thermal_zone0/temp": "35000"}
    found = measured(program(tmp_path / "m.onnx"), Request(runs=5, seconds=0, sysfs=tree(tmp_path, files)))
    assert (found.model, found.runtime, found.precision, found.threads) == ("m.onnx", "onnxruntime", "float32", 1)
    assert found.runs == 5
    assert 0 < found.latency_ms_median <= found.latency_ms_p90
    assert 0 < found.loaded_rss_bytes <= found.peak_rss_bytes
    assert found.energy_joules is not None
    assert found.energy_joules > 0
    assert (found.temperature_c, found.megahertz, found.notes) == (35, 2000, ())


def test_what_cannot_be_read_is_null_and_said(tmp_path: Path) -> None:
    found = measured(program(tmp_path / "m.onnx"), Request(runs=2, seconds=0, sysfs=tmp_path))
    assert (found.energy_joules, found.temperature_c, found.megahertz, found.accuracy) == (None,) * 4
    assert [note.partition(":")[0] for note in found.notes] == ["cores", "energy", "temperature", "frequency"]


def test_throttling_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([2000.0, 1200.0])
    monkeypatch.setattr(measure.Cores, "megahertz", lambda self, cores: next(speeds))
    found = measured(program(tmp_path / "m.onnx"), Request(runs=2, seconds=0, sysfs=tmp_path))
    assert "throttled: the cores went from 2000 to 1200 MHz while it ran" in found.notes


def test_runs_and_seconds_hold_together_and_neither_warm_up_nor_sampling_counts() -> None:
    ticks, sampled = count(step=0.25), []
    times = repeated(lambda: None, 3, 5.0, lambda: next(ticks), lambda: sampled.append(1))
    assert (times[:, 0] == 0.25).all()
    assert len(times) == len(sampled) == 7  # the clock is read three times a run
    assert len(repeated(lambda: None, 3, 0.0)) == 3


def test_the_percentile_is_a_measured_value() -> None:
    values = np.arange(1.0, 11.0)
    assert percentile(values, 0.9) == 9
    assert percentile(values[:1], 0.9) == 1
    assert percentile(np.arange(100.0)[::-1], 0.9) == 89


def test_accuracy_is_of_the_images_whose_label_a_program_knows(tmp_path: Path) -> None:
    dark, light = np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    np.savez(tmp_path / "d.npz", x=np.stack([dark, light, dark, light]), y=np.array([3, 7, 7, 1]))
    request = Request(runs=1, seconds=0, data=tmp_path / "d.npz", sysfs=tmp_path)
    found = measured(program(tmp_path / "m.onnx", [7, 3]), request)
    assert found.accuracy == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="no image of the 2 classes"):
        measured(program(tmp_path / "m.onnx", [4, 5]), request)
    np.savez(tmp_path / "d.npz", x=np.zeros((1, 2, 2), np.uint8), y=np.array([0]))
    with pytest.raises(DataError, match="give such images"):
        measured(program(tmp_path / "m.onnx"), request)


def test_what_is_no_program_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        measured(tmp_path / "none.onnx", Request(sysfs=tmp_path))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.onnx is no program"):
        measured(tmp_path / "junk.onnx", Request(sysfs=tmp_path))
    with pytest.raises(ModelError, match="must take images alone"):
        measured(program(tmp_path / "two.onnx", inputs=2), Request(sysfs=tmp_path))


@pytest.mark.slow
def test_numpy_and_onnx_runtime_are_all_that_a_phone_needs() -> None:
    asked = "import sys, fedcaptor.client.latency_table, fedcaptor.client.measure; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "onnxruntime"} < set(loaded)
    assert not {"torch", "onnx", "flwr", "pydantic", "PIL", "safetensors", "typer"} & set(loaded)


@pytest.mark.slow
def test_programs_have_a_process_each_and_a_broken_one_loses_no_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    good, again = program(tmp_path / "good.onnx"), program(tmp_path / "again.onnx")
    words = ["--json", "--runs", "2", "--seconds", "0", "--sysfs", str(tmp_path)]
    assert measure.main([*words, str(good), str(tmp_path / "junk.onnx"), str(again)]) == 2
    told = capfd.readouterr()
    rows = json.loads(told.out)
    assert [row["model"] for row in rows] == ["good.onnx", "again.onnx"]
    assert all(row["peak_rss_bytes"] < measure.peak_rss() for row in rows)
    assert told.err.startswith("error: ")
    assert "junk.onnx is no program" in told.err
