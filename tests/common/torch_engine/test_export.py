"""What is written for use elsewhere answers there as the submodel does here."""

import json
from dataclasses import replace
from zipfile import ZipFile

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

from fedcaptor.common.errors import ConfigError, ModelError
from fedcaptor.common.onnx_quantisation import CALIBRATED_ON
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine import export as module
from fedcaptor.common.torch_engine.export import ABOUT, INPUT, OUTPUT, Format, Precision, content, formats_of
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.standalone import Standalone
from tests import tiny
from tests.common.test_slicing import random_plan, shape_of
from tests.common.torch_engine.test_factory import base_of

pytestmark = pytest.mark.usefixtures("one_thread")


def standalone(name):
    base = base_of(name, shape_of(name))
    plan = random_plan(base.groups, np.random.default_rng(5))
    return Standalone.of(sliced(base, Plan.of(base.groups, {**plan.kept, base.groups.output.name: [1, 3, 4]})))


def export(submodel, path, precision=Precision.single, images=None):
    path.write_bytes(content(submodel, Format(path.suffix, precision), images)[0])


def run_pt2(path, pixels):
    notes = {ABOUT: ""}
    program = torch.export.load(path, extra_files=notes)
    return program.module()(torch.from_numpy(pixels)).detach().numpy(), json.loads(notes[ABOUT])


def run_onnx(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    return session.run([OUTPUT], {INPUT: pixels})[0], about


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "run"), [("pt2", run_pt2), ("onnx", run_onnx)])
@pytest.mark.parametrize("name", ["small-cnn", "alexnet", "resnet20", "torchvision/mobilenet_v2"])
def test_a_program_answers_as_the_submodel(tmp_path, name, ending, run):
    submodel = standalone(name)
    path = tmp_path / f"small.{ending}"
    export(submodel, path)
    channels, height, width = submodel.input_shape
    for count in (1, 5):
        images = np.random.default_rng(count).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
        scores, about = run(path, images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        wanted = submodel.scores(images)
        np.testing.assert_allclose(scores, wanted, atol=1e-4 * abs(wanted).max())
    assert about == {"model": name, "labels": [1, 3, 4], "input_shape": [channels, height, width]}


@pytest.mark.slow
def test_a_program_says_the_names_of_its_classes_and_no_path_of_the_machine_that_made_it(tmp_path):
    submodel = replace(standalone("small-cnn"), class_names=("red", "green", "blue"))
    for ending, run in (("pt2", run_pt2), ("onnx", run_onnx)):
        path = tmp_path / f"small.{ending}"
        export(submodel, path)
        assert run(path, np.zeros((1, *submodel.input_shape), np.float32))[1]["class_names"] == ["red", "green", "blue"]
        if ending == "onnx":
            assert b"export.py" not in path.read_bytes()
        else:
            with ZipFile(path) as archive:
                assert not any(b"export.py" in archive.read(name) for name in archive.namelist())


PICTURES = np.random.default_rng(3).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("ending", "precision", "run", "part", "tolerance"),
    [
        ("pt2", Precision.half, run_pt2, 0.6, 0.02),
        pytest.param("onnx", Precision.half, run_onnx, 0.55, 0.02, marks=pytest.mark.slow),
        pytest.param("onnx", Precision.int8, run_onnx, 0.4, 0.2, marks=pytest.mark.slow),
    ],
)
def test_smaller_numbers_make_smaller_files_that_answer_alike(tmp_path, ending, precision, run, part, tolerance):
    submodel = replace(standalone("small-cnn"), class_names=("red", "green", "blue"))
    single, small = tmp_path / f"single.{ending}", tmp_path / f"small.{ending}"
    export(submodel, single)
    export(submodel, small, precision, PICTURES)
    assert small.stat().st_size < part * single.stat().st_size
    scores, about = run(small, PICTURES.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    wanted = submodel.scores(PICTURES)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, atol=tolerance * abs(wanted).max())
    assert about["class_names"] == ["red", "green", "blue"]


def test_eight_bits_are_for_onnx_and_need_images():
    with pytest.raises(ConfigError, match=r"int8 is for \.onnx files, not for \.pt2"):
        Format(".pt2", Precision.int8)
    with pytest.raises(ConfigError, match="half and int8 are both given"):
        module.precision_of(True, True)
    with pytest.raises(ConfigError, match="give images of the target classes"):
        module._drawn(None)
    assert len(module._drawn(np.zeros((1000, 1, 1, 1)))) == CALIBRATED_ON


def test_weights_are_read_again(tmp_path):
    submodel = standalone("resnet20")
    export(submodel, tmp_path / "small.safetensors")
    again = Standalone.read(tmp_path / "small.safetensors")
    assert again.labels.tolist() == [1, 3, 4]
    assert (again.mean, again.std, again.input_shape) == (submodel.mean, submodel.std, submodel.input_shape)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    wanted = submodel.scores(images)
    np.testing.assert_allclose(again.scores(images), wanted, atol=0.02 * abs(wanted).max())  # half precision
    assert set(again.predict(images)) <= {1, 3, 4}


def test_a_file_does_not_choose_what_is_imported(tmp_path):
    path = tmp_path / "small.safetensors"
    base = base_of(tiny.MODEL, (1, tiny.SIDE, tiny.SIDE))
    Standalone.of(sliced(base, Plan.of(base.groups, {}))).write(path)
    with pytest.raises(ModelError, match=r"'tests\.tiny:network', not one of .*: name its factory"):
        Standalone.read(path)
    assert Standalone.read(path, tiny.MODEL).labels.tolist() == list(range(base.groups.classes))


WHOLE = {"model": "resnet20", "labels": "[1]", "input_shape": "[3, 32, 32]"}


@pytest.mark.parametrize(
    "metadata",
    [{}, *(WHOLE | {key: text} for key in (*WHOLE, "costs") for text in ("[1", "[" * 99_999, f"[{2**70}]", "[[1]]"))],
)
def test_other_files_are_no_submodels(tmp_path, metadata):
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(ModelError, match=r"other\.safetensors (is no submodel|holds a network of)"):
        Standalone.read(tmp_path / "other.safetensors")


class Moody(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def test_what_cannot_become_a_program_is_named_and_nothing_is_written(tmp_path):
    moody = Standalone("mine:moody", np.arange(3), (0.5,) * 3, (0.5,) * 3, (3, 8, 8), Moody())
    with pytest.raises(ModelError, match=r"mine:moody cannot become \.pt2 .*write \.safetensors instead"):
        export(moody, tmp_path / "moody.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    wrong = {**module._PROGRAMS, ".pt2": lambda pixels, images, about: (b"program", lambda x: pixels(x) + 1)}
    monkeypatch.setattr(module, "_PROGRAMS", wrong)
    with pytest.raises(ModelError, match="small-cnn answers otherwise as a program"):
        export(standalone("small-cnn"), tmp_path / "wrong.pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"small\.onnx: \.onnx needs onnxscript: pip install 'fedcaptor\[onnx\]'"):
        formats_of([tmp_path / "small.pt2", tmp_path / "small.onnx"])


def test_other_endings_are_refused(tmp_path):
    formats_of([tmp_path / "a.pt2", tmp_path / "b.onnx", tmp_path / "c.safetensors"])
    with pytest.raises(ConfigError, match=r"ends in '\.pth', must end in \.safetensors, \.pt2, \.onnx"):
        formats_of([tmp_path / "a.pth"])
