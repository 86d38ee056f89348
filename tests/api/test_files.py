"""Submodels in files and back, and networks looked at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import fedcaptor
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.weights_file import load_state, save_state
from tests import tiny

STATISTICS = {"mean": 0.3, "std": 0.25}
X, Y = tiny.images(60, seed=5)


@pytest.fixture(scope="module")
def small(network: nn.Module) -> fedcaptor.Submodel:
    return fedcaptor.prune(network, X, [1, 4], macs=0.5, multiple=2, name="bars", **STATISTICS)


@pytest.mark.parametrize("by", ["module", "factory", "name"])
def test_weights_are_read_back(by: str, network: nn.Module, small: fedcaptor.Submodel, tmp_path: Path) -> None:
    path = small.save(tmp_path / "small.safetensors")
    again = fedcaptor.load(path, {"module": network, "factory": tiny.network, "name": tiny.MODEL}[by])
    np.testing.assert_allclose(again.scores(X), small.scores(X), atol=0.02)
    assert again.classes.tolist() == [1, 4]
    assert again.parameters == small.parameters
    assert repr(again).startswith("<fedcaptor.Submodel of ")
    assert (again.macs, again.macs_ratio, again.parameters_ratio) == (
        small.macs,
        small.macs_ratio,
        small.parameters_ratio,
    )
    assert f"MACs ({small.macs_ratio:.1%})" in repr(again)
    with pytest.raises(fedcaptor.ModelError, match=r"'bars', not one of .*: name its factory"):
        fedcaptor.load(path)
    assert network[0].weight.shape[0] == 8  # the full network stays as it is


def test_a_file_of_an_earlier_release_does_not_say_what_the_full_network_costs(
    small: fedcaptor.Submodel, network: nn.Module, tmp_path: Path
) -> None:
    state, metadata = load_state(small.save(tmp_path / "small.safetensors"))
    del metadata["costs"]
    save_state(tmp_path / "old.safetensors", state, metadata)
    old = fedcaptor.load(tmp_path / "old.safetensors", network)
    assert repr(old).endswith("parameters>")
    for figure in ("macs", "macs_ratio", "parameters_ratio"):
        with pytest.raises(fedcaptor.ModelError, match=r"of an earlier release.*: prune and save it again"):
            getattr(old, figure)


@pytest.mark.slow
def test_a_program_takes_pixels(small: fedcaptor.Submodel, tmp_path: Path) -> None:
    notes = {"fedcaptor.json": ""}
    program = torch.export.load(small.save(str(tmp_path / "small.pt2")), extra_files=notes).module()
    images = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
    np.testing.assert_allclose(program(images), small.scores(X), atol=1e-4)
    assert json.loads(notes["fedcaptor.json"])["labels"] == [1, 4]


@pytest.mark.slow
def test_a_program_of_eight_bits_answers_alike(small: fedcaptor.Submodel, network: nn.Module, tmp_path: Path) -> None:
    pixels = X.transpose(0, 3, 1, 2).astype(np.float32) / 255
    loaded = fedcaptor.load(small.save(tmp_path / "small.safetensors"), network)
    with pytest.raises(fedcaptor.ConfigError, match="give images of the target classes"):
        loaded.save(tmp_path / "loaded.onnx", int8=True)
    for submodel, images in ((loaded, X), (small, None)):
        path = submodel.save(tmp_path / "small.onnx", int8=True, images=images)
        scores = onnxruntime.InferenceSession(path).run(["scores"], {"images": pixels})[0]
        assert (small.classes[scores.argmax(1)] == small.predict(X)).mean() > 0.95


def test_a_network_of_normalised_floats_stays_one(network: nn.Module, tmp_path: Path) -> None:
    images = normalise(X, (0.3,), (0.25,))
    small = fedcaptor.prune(network, images, [1, 4], macs=0.5, multiple=2)
    again = fedcaptor.load(small.save(tmp_path / "small.safetensors"), network)
    np.testing.assert_allclose(again.scores(images), small.scores(images), atol=0.02)
    with pytest.raises(fedcaptor.DataError, match="normalised floats"):
        again.predict(X)


def test_another_ending_is_refused(small: fedcaptor.Submodel, tmp_path: Path) -> None:
    with pytest.raises(fedcaptor.ConfigError, match="must end in"):
        small.save(tmp_path / "small.pth")


def test_a_network_is_looked_at(network: nn.Module) -> None:
    found = fedcaptor.inspect(network, (1, 12, 12), name="bars")
    title, head, *rows = repr(found).splitlines()
    rows, costs = rows[:3], rows[3:]
    assert title == f"bars: {found.groups.macs():,} MACs, {found.groups.parameters():,} parameters"
    assert head.split() == ["group", "channels", "producers", "read", "by"]
    assert [row.split()[:2] for row in rows] == [["0", "8"], ["3", "12"], ["6", "6"]]
    assert rows[-1].endswith("the classes")
    assert [row.split()[0] for row in costs] == ["layer", "0", "3", "6", "(others)"]


def test_an_atlas_is_made_of_a_network_in_memory(network: nn.Module, tmp_path: Path) -> None:
    options = {"layers": ["3"], "filters": 2, "steps": 1, "progress": False, "class_names": list("abcdef")}
    page = fedcaptor.atlas(network, X, out=tmp_path / "a.html", **options, **STATISTICS).read_text()
    assert "<b>Filter" in page
    pixels = torch.from_numpy(X).permute(0, 3, 1, 2) / 255
    assert fedcaptor.atlas(network, pixels, out=tmp_path / "b.html", **options, **STATISTICS).read_text() == page
    with pytest.raises(fedcaptor.DataError, match="an atlas shows pixels"):
        fedcaptor.atlas(network, pixels, out=tmp_path / "c.html", **options)
    with pytest.raises(fedcaptor.ConfigError, match="class_names are 1"):
        fedcaptor.atlas(network, X, out=tmp_path / "c.html", **{**options, "class_names": ["a"]}, **STATISTICS)


def test_a_network_is_trained(bars: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.safetensors"
    assert 0 < fedcaptor.train(tiny.MODEL, str(bars[0]), out=out, epochs=1, progress=False) <= 1
    assert out.exists()
    assert capsys.readouterr().err == ""
