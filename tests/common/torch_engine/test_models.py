"""Registry, weights on disk, and networks that take on the shape of their weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.torch_engine.base import CLASS_NAMES, BaseModel, class_names_of, statistic
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.torch_engine.registry import build, names, skeleton
from fedcaptor.common.weights_file import load_state, save_state


def numpy_state(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.detach().numpy().copy() for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", [n for n in names() if n != "torchvision/vgg16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_takes_channels_size_and_classes(name: str, channels: int) -> None:
    shape = (channels, 64, 70)
    module = build(name, 7, shape)
    assert not module.training
    assert module(torch.randn(2, *shape)).shape == (2, 7)


def test_small_cnn_is_small() -> None:
    module = build("small-cnn", 10, (1, 28, 28))
    assert sum(p.numel() for p in module.parameters()) < 700_000
    assert build("small-cnn", 3, (3, 16, 16))(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize(("name", "side"), [("small-cnn", 15), ("alexnet", 14), ("torchvision/alexnet", 62)])
def test_too_small_images_are_refused(name: str, side: int) -> None:
    with pytest.raises(ModelError, match=f"images are {side}×64, {name} needs at least"):
        build(name, 10, (3, side, 64))


def test_state_dict_keys_stay_as_in_published_weights() -> None:
    vgg = build("vgg16", 10, (3, 32, 32)).state_dict()
    assert vgg["features.40.weight"].shape == (512, 512, 3, 3)
    assert vgg["classifier.3.bias"].shape == (10,)
    alex = build("alexnet", 10, (3, 32, 32)).state_dict()
    assert alex["classifier.1.weight"].shape == (1024, 256 * 9)
    assert alex["features.10.bias"].shape == (256,)


def test_unknown_name_lists_the_registered_ones() -> None:
    with pytest.raises(ModelError, match="small-cnn, torchvision/alexnet"):
        build("vgg17", 10, (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.common.own_networks:missing", "cannot be imported"),
        ("no_such_package.module:factory", "cannot be imported"),
        (":factory", "cannot be imported"),
        ("tests.common.own_networks:wrong", "gave a tuple, must give a torch.nn.Module"),
        ("tests.common.own_networks:failing", "no weights today"),
    ],
)
def test_bad_factories_are_explained(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, 10, (3, 16, 12))


def test_own_network_is_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(
        "from torch import nn\n"
        "def tiny(classes, shape):\n"
        "    return nn.Sequential(nn.Conv2d(shape[0], 8, shape[1:]), nn.ReLU(), nn.Flatten(), nn.Linear(8, classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # undoes what build adds to the path
    name, shape = "my_package.nets:tiny", (2, 6, 5)
    module = build(name, 4, shape)
    save_state(tmp_path / "tiny.safetensors", numpy_state(module), {"mean": "(0.1, 0.2)", "std": "(1.0, 2.0)"})
    base = BaseModel.load(tmp_path / "tiny.safetensors", name, shape)
    assert base.groups.classes == 4
    assert base.mean == (0.1, 0.2)
    x = torch.randn(3, *shape)
    torch.testing.assert_close(base.rebuild(base.state)(x), module(x), rtol=1e-2, atol=1e-2)


def test_skeleton_filled_with_weights_equals_the_built_network() -> None:
    for name in ("small-cnn", "resnet20", "torchvision/mobilenet_v2"):
        built, x = build(name, 6, (3, 32, 32)), torch.randn(2, 3, 32, 32)
        filled = network(skeleton(name, 6, (3, 32, 32)), numpy_state(built))
        torch.testing.assert_close(filled(x), built(x))
        assert not filled.training
        assert not any(p.requires_grad or p.is_meta for p in filled.parameters())


def test_network_copies_its_tensors() -> None:
    module = build("small-cnn", 3, (1, 16, 16))
    state = numpy_state(module)
    before = {key: array.copy() for key, array in state.items()}
    filled = network(skeleton("small-cnn", 3, (1, 16, 16)), state)
    with torch.no_grad():
        for tensor in filled.state_dict().values():
            tensor.add_(1)
    assert all(np.array_equal(before[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.1.bias"), r"tensor features.1.bias \(32,\) is missing"),
        (lambda s: s.update(extra=np.zeros(3)), "tensor extra is not in the network"),
        (lambda s: s.update({"features.0.weight": np.zeros((32, 1, 5, 5))}), r"is \(32, 1, 5, 5\), the network has"),
        (lambda s: s.update({"features.0.weight": np.zeros((40, 1, 3, 3))}), r"is \(40, 1, 3, 3\), the network has"),
        (lambda s: s.update({"features.0.weight": np.zeros((0, 1, 3, 3))}), r"is \(0, 1, 3, 3\), the network has"),
        (lambda s: s.update({"features.1.bias": np.zeros(31)}), "tensors of features.1 disagree"),
        (lambda s: s.update({"classifier.3.bias": np.zeros(2)}), "tensors of classifier.3 disagree"),
    ],
)
def test_foreign_tensors_are_refused(change, message: str) -> None:
    module = build("small-cnn", 3, (1, 16, 16))
    state = numpy_state(module)
    change(state)
    with pytest.raises(ModelError, match=message):
        network(module, state)


@given(
    st.dictionaries(
        st.text("abc.0123456789", min_size=1, max_size=9),
        arrays.arrays(
            np.float32, arrays.array_shapes(min_dims=0, max_dims=4, max_side=4), elements=st.floats(-9, 9, width=16)
        ),
        max_size=5,
    )
)
def test_saved_state_comes_back_in_its_order(tmp_path_factory: pytest.TempPathFactory, state) -> None:
    path = tmp_path_factory.mktemp("weights") / "folder" / "w.safetensors"
    save_state(path, state, {"mean": "(0.5,)", "note": "×"})
    loaded, metadata = load_state(path)
    assert metadata == {"mean": "(0.5,)", "note": "×"}
    assert list(loaded) == list(state)
    for key, array in state.items():
        assert loaded[key].dtype == np.float32
        np.testing.assert_array_equal(loaded[key], array)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_counters_stay_integers_and_large_values_stay_finite(tmp_path: Path) -> None:
    state = {"v": np.array([1e6, 1.0], np.float32), "n": np.array(7, np.int64), "t": np.ones((2, 3), np.float32).T}
    save_state(tmp_path / "w.safetensors", state, {})
    loaded, _ = load_state(tmp_path / "w.safetensors")
    assert loaded["n"].dtype == np.int64
    assert loaded["n"].shape == ()
    np.testing.assert_array_equal(loaded["v"], state["v"])
    assert loaded["t"].shape == (3, 2)


def test_files_from_elsewhere_are_ordered_by_number(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({f"head.{i}.weight": np.zeros(1, np.float16) for i in (10, 2, 1)}, tmp_path / "w.safetensors")
    assert list(load_state(tmp_path / "w.safetensors")[0]) == [f"head.{i}.weight" for i in (1, 2, 10)]


@pytest.mark.parametrize("order", ["", "[", "[" * 99_999, "3", '{"a": 1}', "[1, 2]", '["a", null]', "9" * 5000])
def test_an_order_that_is_none_is_ignored(order: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {name: np.zeros(1, np.float16) for name in ("b", "a")}
    save_file(tensors, tmp_path / "w.safetensors", {"fedcaptor.tensors": order})
    assert list(load_state(tmp_path / "w.safetensors")[0]) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "0.5", "(0.5", "(None,)", "('x',)", "[[1]]", "(" * 9999, "(" + "9" * 5000 + ",)"])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_normalisation_that_is_none_is_refused(key: str, text: str) -> None:
    with pytest.raises(ModelError, match=rf"weights give {key} as .*, must be 1 numbers: write \(0\.5,\)"):
        statistic({key: text}, key, 0.5, 1)


@pytest.mark.parametrize("text", ["", "[" * 99_999, "3", '{"a": 1}', "[1]", '["a", "b"]'])
def test_class_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="must be a JSON list of 1 names"):
        class_names_of({CLASS_NAMES: text}, 1, Path("w.safetensors"))


def test_brain_floats_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    values = torch.tensor([[1.5, -2.25e10, 3.1], [float("inf"), 1e-40, -0.0]])
    tensors = {"a": values.bfloat16(), "b": values.half(), "c": torch.tensor(7), "d": values}
    save_file(tensors, path := tmp_path / "w.safetensors")
    expected, (found, _) = load_file(path), load_state(path)
    for name in tensors:
        wanted = expected[name].float() if expected[name].is_floating_point() else expected[name]
        np.testing.assert_array_equal(found[name], wanted.numpy())
        assert found[name].dtype == wanted.numpy().dtype


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_state(path, {"a": np.ones(2, np.float32)}, {})
    with pytest.raises(Exception, match=r"str|PyString|metadata"):
        save_state(path, {"a": np.zeros(2, np.float32)}, {"accuracy": 0.5})
    np.testing.assert_array_equal(load_state(path)[0]["a"], np.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["²", "head." + "9" * 5000])
def test_any_name_of_a_tensor_can_be_ordered(name: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.zeros(1, np.float16), "head.1": np.zeros(1, np.float16)}, tmp_path / "w.safetensors")
    assert list(load_state(tmp_path / "w.safetensors")[0]) == ["head.1", name]


@pytest.mark.parametrize("order", ["[", "[" * 100_000, "9" * 5000, "7", '["a", 1]', '[["a"]]', '{"a": 1}'])
def test_an_order_that_is_none_is_not_followed(order: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, tmp_path / "w.safetensors", {"fedcaptor.tensors": order})
    assert list(load_state(tmp_path / "w.safetensors")[0]) == ["a"]


def test_unreadable_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not tensors at all")
    for name, message in (
        ("w.safetensors", "is not a readable safetensors file"),
        ("missing.safetensors", "does not exist: correct the path"),
        (".", "is a folder: name a file in it"),
    ):
        with pytest.raises(ModelError, match=message):
            load_state(tmp_path / name)
