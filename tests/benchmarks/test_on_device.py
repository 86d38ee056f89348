"""Rows of pruned networks in three runtimes, and the section that they make."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import executorch_program
from benchmarks.on_device import FIGURES, OnDevice, torch_alone
from benchmarks.record import Record
from benchmarks.results import PAGES
from benchmarks.submodels import random_base, random_plans
from fedcaptor.common.errors import ConfigError, MissingError
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.standalone import Standalone

MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}
SETTINGS = {"seconds": 1.0, "seed": 0, "onnxruntime": "1.32.0", "threads": 1}


def line(macs: float, latency: float, memory: int, **more: object) -> dict[str, object]:
    told = {"model": "vgg16", "runtime": "onnxruntime", "precision": "float32", "multiple": 16, "macs_target": macs}
    ratio = {"latency_ratio": latency, "latency_ratio_low": latency - 0.01, "latency_ratio_high": latency + 0.01}
    figures = dict.fromkeys(FIGURES, 10.0) | {"loaded_rss_bytes": 50_000_000, "peak_rss_bytes": 50_000_000 + memory}
    return {**told, **ratio, **figures, "macs_ratio": macs, "energy_ratio_modelled": macs, **more}


def test_the_section_says_where_time_stays_beyond_macs_and_where_cutting_was_in_vain() -> None:
    rows = [
        line(1.0, 1.0, 8_000_000),
        line(0.5, 0.55, 4_000_000),
        line(0.3, 0.36, 3_000_000),
        line(0.2, 0.37, 2_000_000),
    ]
    reported = {"model": "vgg16", "reported": "CAPTOR", "macs_ratio": 0.587, "energy_ratio_modelled": 0.6}
    rows.append({**reported, "macs_saved_reported": 0.405, "energy_saved_reported": 0.379})
    text = PAGES["on_device"](Record("on_device", SETTINGS, MACHINE, [], rows)).text
    assert (
        "| vgg16 | onnxruntime float32 | 16 | 30.0 | 36.0 (35.0–37.0) | 1.20 | 10.00 | 10.00 | 3.0 | 38 | 30.0 |"
        in text
    )
    assert (
        "multiples of 16: 1.10 to 1.85 times its MACs ratio, 2 of 3 above 1.15; 1 slower than the next larger." in text
    )
    assert "| vgg16 | 40.5 | 37.9 | 41.3 | 40.0 |" in text


def test_coarser_multiples_are_measured_where_they_tell_most() -> None:
    keys = OnDevice(models="vgg16,resnet56", macs="0.5,0.3").row_keys()
    assert len(keys) == 2 * (3 + 5 + 3) + 1
    assert {key["runtime"] for key in keys if key.get("multiple") == 8} == {"onnxruntime"}


def test_executorch_is_measured_where_it_is_asked_for_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = OnDevice(models="vgg16", macs="0.5", runtimes="executorch")
    assert [key["macs_target"] for key in benchmark.row_keys() if key.get("runtime") == "executorch"] == [1.0, 0.5]
    with pytest.raises(ConfigError, match="runtime 'tflite' is unknown, known are torch, onnxruntime, executorch"):
        OnDevice(runtimes="torch,tflite").row_keys()
    monkeypatch.setattr(executorch_program, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install executorch=="), benchmark.measuring(lambda *_: None):
        pass


@pytest.mark.slow
def test_a_pruned_network_beside_the_full_one_and_alone(tmp_path: Path) -> None:
    key = {"model": "small-cnn", "runtime": "onnxruntime", "precision": "int8", "multiple": 8, "macs_target": 0.3}
    with OnDevice(seconds=0.1).measuring(lambda *_: None) as measure:
        row = measure(key)
    assert 0 < row["macs_ratio"] <= 0.3
    assert 0 < row["latency_ratio_low"] <= row["latency_ratio"] <= row["latency_ratio_high"]
    assert 0 < row["energy_ratio_modelled"] < 1
    assert all(row[name] > 0 for name in FIGURES)
    assert row["peak_rss_bytes"] > row["loaded_rss_bytes"]


@pytest.mark.slow
def test_a_network_of_torch_alone(tmp_path: Path) -> None:
    base = random_base("small-cnn", (1, 28, 28), 0)
    Standalone.of(sliced(base, random_plans(base.groups, 0.3, 1, 0)[0])).write(tmp_path / "small.safetensors")
    found = torch_alone(tmp_path / "small.safetensors", "small-cnn", 0.0)
    assert tuple(found) == FIGURES
    assert 0 < found["latency_ms_median"] <= found["latency_ms_p90"]
