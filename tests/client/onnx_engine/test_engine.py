"""A phone without torch computes what one with torch does, but for rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedcaptor.client.device import Device
from fedcaptor.client.onnx_engine import Network, OnnxEngine
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, DataError, ModelError
from fedcaptor.common.onnx_graph import NetworkGraph
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.network_graph import network_graph
from fedcaptor.common.weights_file import save_state
from fedcaptor.simulations.runner import build_world
from tests import tiny
from tests.common.test_slicing import random_plan, shape_of
from tests.common.torch_engine.test_factory import base_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # exporting takes seconds

OWN = np.array([1, 3, 4])
Engines = tuple[TorchEngine, OnnxEngine]


@lru_cache(maxsize=8)
def engines_of(name: str) -> Engines:
    base = base_of(name, shape_of(name))
    return TorchEngine(base), OnnxEngine(Network(network_graph(base), base.state, base.mean, base.std), base.groups)


@pytest.fixture(scope="module")
def small() -> Engines:
    return engines_of("small-cnn")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of the tiny network, and its graph."""
    folder = tmp_path_factory.mktemp("tiny")
    _, weights = tiny.write(folder, 600, 20)
    network_graph(tiny.base_model(weights)).save(folder / "network.onnx")
    return {"weights": weights, "graph": folder / "network.onnx"}


def pictures(engine: OnnxEngine, count: int, seed: int = 0) -> NDArray[np.uint8]:
    channels, height, width = engine.groups.input_shape
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "small-cnn",
        "alexnet",
        "resnet20",
        "tests.common.own_networks:gated",
        "tests.common.own_networks:grouped_twice",
        "tests.common.own_networks:concatenating",
    ],
)
def test_numbers_are_those_of_torch(name: str) -> None:
    torch, onnx = engines_of(name)
    images = pictures(onnx, 40)
    np.testing.assert_allclose(onnx.scores(images), torch.scores(images), rtol=0, atol=1e-4)
    mine, theirs = onnx.filter_scores(images), torch.filter_scores(images)
    np.testing.assert_allclose(mine.scores, theirs.scores, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(mine.present, theirs.present)
    seen, expected = (each.observe(OWN, images, seed=3, rows=1024) for each in (onnx, torch))
    for group, curve in expected.curves.items():
        np.testing.assert_allclose(seen.curves[group].cost, curve.cost, rtol=0, atol=1e-4 * curve.cost.max())
    plan = allocate(onnx.groups, expected.curves, OWN, Budget(macs=0.5, multiple=1))
    built, wanted = seen.build(plan), expected.build(plan)
    others = pictures(onnx, 200, 1)
    assert (built.predict(others) == wanted.predict(others)).mean() >= 0.995
    np.testing.assert_array_equal(built.classes, OWN)
    assert (built.macs_ratio, built.parameters_ratio) == (wanted.macs_ratio, wanted.parameters_ratio)


@pytest.mark.parametrize("name", ["small-cnn", "resnet20", "alexnet"])
def test_batch_norms_are_measured_and_moved_as_with_torch(name: str) -> None:
    """AlexNet has none."""
    torch, onnx = engines_of(name)
    images = pictures(onnx, 20)
    mine, theirs = onnx.moments(images), torch.moments(images)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=0.01)
    adapted, wanted = onnx.adapted(theirs), torch.adapted(theirs)
    np.testing.assert_allclose(adapted.scores(images), wanted.scores(images), rtol=0, atol=1e-3)
    assert adapted.weights_digest == wanted.weights_digest == torch.weights_digest
    if len(mine):
        assert np.abs(adapted.scores(images) - onnx.scores(images)).max() > 0.01
        np.testing.assert_allclose(adapted.moments(images), 0, atol=0.05)
        with pytest.raises(DataError, match="use those of this network"):
            onnx.adapted(theirs[:-1])


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["vgg16", "torchvision/resnet18", "torchvision/mobilenet_v2", "benchmarks.lite0:efficientnet_lite0"]
)
def test_answers_are_those_of_torch_where_rounding_crosses_kinks(name: str) -> None:
    """In a large network some value of a map is always within rounding of a rectifier's bound."""
    torch, onnx = engines_of(name)
    images, others = pictures(onnx, 20), pictures(onnx, 200, 1)
    np.testing.assert_allclose(onnx.scores(images), torch.scores(images), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(onnx.filter_scores(images).scores, torch.filter_scores(images).scores, rtol=0, atol=0.02)
    seen, expected = (each.observe(OWN, images, rows=256) for each in (onnx, torch))
    plan = allocate(onnx.groups, expected.curves, OWN, Budget(macs=0.5, multiple=1))
    assert (seen.build(plan).predict(others) == expected.build(plan).predict(others)).mean() >= 0.995


def test_how_many_images_run_at_a_time_changes_no_result(small: Engines) -> None:
    one = small[1]
    few, many = (OnnxEngine(replace(one.network, batch=batch), one.groups) for batch in (3, 64))
    images = pictures(one, 16)
    np.testing.assert_allclose(few.scores(images), many.scores(images), rtol=0, atol=1e-5)
    np.testing.assert_allclose(few.filter_scores(images).scores, many.filter_scores(images).scores, rtol=0, atol=1e-5)
    seen, expected = (each.observe(OWN, images, rows=64) for each in (few, many))
    plan = allocate(one.groups, expected.curves, OWN, Budget(macs=0.5, multiple=1))
    for name, curve in expected.curves.items():
        np.testing.assert_allclose(seen.curves[name].cost, curve.cost, rtol=0, atol=1e-5 * curve.cost.max())
    np.testing.assert_allclose(seen.build(plan).scores(images), expected.build(plan).scores(images), rtol=0, atol=1e-3)


def test_weights_are_read_where_they_lie(small: Engines) -> None:
    """No session has a copy of its own, of which there would be one for each submodel that is tried."""
    engine = small[1]
    network = engine.network.with_state({name: tensor.copy() for name, tensor in engine.network.state.items()})
    images = pictures(engine, 4)
    before = network.scores(images)
    network.state["classifier.3.bias"][...] += 1
    np.testing.assert_allclose(network.scores(images), before + 1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", [False, True])
def test_importance_and_start_steer_the_order(small: Engines, start: bool) -> None:
    groups = small[0].groups
    rng = np.random.default_rng(0)
    plan = Plan.of(groups, {g.name: np.arange(0, g.channels, 2) for g in groups.prunable}) if start else None
    factors = {g.name: rng.uniform(0.5, 2, g.channels) for g in groups.prunable}
    images = pictures(small[1], 12)
    theirs, mine = (e.observe(OWN, images, start=plan, importance=factors, rows=256).curves for e in small)
    for name, curve in theirs.items():
        np.testing.assert_array_equal(mine[name].order, curve.order)


def test_submodels_are_made_stored_and_loaded(small: Engines) -> None:
    torch, onnx = small
    images, plan = pictures(onnx, 30), random_plan(onnx.groups, np.random.default_rng(5))
    whole, few = onnx.whole(), onnx.restricted(OWN)
    np.testing.assert_array_equal(whole.predict(images), onnx.predict(images))
    np.testing.assert_allclose(few.scores(images), onnx.scores(images)[:, OWN], rtol=0, atol=1e-5)
    built = onnx.observe(plan.classes(onnx.groups), images, rows=256).build(plan)
    for engine in small:  # of one file both make the same
        loaded = engine.load(plan, onnx.tensors(built))
        np.testing.assert_allclose(loaded.scores(images), built.scores(images), rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match=r"no slice of the base model: tensor features.7.weight is .*, must be"):
        onnx.load(plan, onnx.tensors(whole))
    with pytest.raises(TypeError, match="load its tensors into this one"):
        onnx.tensors(torch.whole())
    assert onnx.tuned(built, images, images, steps=5, seed=0) is built
    with pytest.raises(DataError, match="0 calibration images"):
        onnx.observe(OWN, images[:0], rows=64)
    assert onnx.scores(images[:0]).shape == (0, 10)
    assert few.predict(images[:0]).shape == (0,)


def test_a_submodel_serves_as_a_base(small: Engines) -> None:
    """As on a phone that never had the full model."""
    images = pictures(small[1], 40)
    first = Plan.of(small[1].groups, {"features.7": np.arange(0, 96, 2), "classifier.3": [1, 3, 4, 7]})
    found = []
    for engine in small:
        outer = engine.observe(np.array([1, 3, 4, 7]), images, rows=256).build(first)
        inner = engine.within(outer)
        second = Plan.of(inner.groups, {"features.7": np.arange(24), "classifier.3": [0, 2]})
        evidence = inner.observe(np.array([0, 2]), images, rows=256)
        own = evidence.build(second)
        joined = Plan.of(engine.groups, {"features.7": np.arange(0, 48, 2), "classifier.3": [1, 4]})
        widened = engine.widened(own, joined)
        assert widened.classes.tolist() == [1, 4]
        found.append((inner.groups.digest, inner.filter_scores(images).scores, widened.scores(images)))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[1][2], found[0][2], rtol=0, atol=1e-3)


def test_outputs_of_other_classes_are_refitted(small: Engines) -> None:
    images, others = pictures(small[1], 60), np.array([0, 2])
    plan = Plan.of(small[1].groups, {"features.7": np.arange(40)})
    before, after = [], []
    for engine in small:
        built = engine.observe(OWN, images, rows=256).build(plan)
        before.append(built.scores(images))
        after.append(engine.refitted(built, images, others).scores(images))
    np.testing.assert_allclose(after[1], after[0], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(after[1][:, OWN], before[1][:, OWN])
    assert np.abs(after[1][:, others] - before[1][:, others]).max() > 0.1


def test_a_program_is_complete(small: Engines) -> None:
    onnx = small[1]
    built, images = onnx.restricted(OWN), pictures(onnx, 5)
    content, wanted = onnx.program(built), built.scores(images)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(session.run(["scores"], {"pixels": pixels})[0], wanted, atol=2e-3 * abs(wanted).max())
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == list(OWN)
    stored = sum(tensor.size for tensor in onnx.tensors(built).values())
    assert len(content) < 2 * stored + 20_000  # half precision


@pytest.mark.parametrize(
    "name", ["resnet20", "tests.common.own_networks:gated", "tests.common.own_networks:concatenating"]
)
def test_other_operations_have_eight_bits_too(name: str) -> None:
    """Residual sums, gates, joined maps; random weights, so that scores are compared and not answers."""
    onnx = engines_of(name)[1]
    images, whole = pictures(onnx, 40), onnx.whole()
    small = onnx.quantised(whole, images)
    assert small is not None
    wanted = whole.scores(images)
    assert 0 < np.abs(small.scores(images) - wanted).max() < 0.15 * np.abs(wanted).max()


def test_files_of_a_device_give_the_same_engine(files: dict[str, Path], tmp_path: Path) -> None:
    engine = OnnxEngine.of(files["graph"], files["weights"])
    base = tiny.base_model(files["weights"])
    assert engine.weights_digest == base.weights_digest
    assert engine.groups.digest == base.groups.digest
    images = tiny.images(30, 5)[0]
    np.testing.assert_allclose(engine.scores(images), base.scores(images), rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match="is no graph of a network: export it"):
        NetworkGraph.load(files["weights"])
    other = base_of("small-cnn", (1, 16, 16))
    save_state(tmp_path / "other.safetensors", other.state, {"mean": "(0.5,)", "std": "(0.5,)"})
    with pytest.raises(ModelError, match=r"does not fit .*: tensor 0.weight is missing, must be \(8, 1, 3, 3\)"):
        OnnxEngine.of(files["graph"], tmp_path / "other.safetensors")


WITHOUT_TORCH = """
import sys
from pathlib import Path

for name in ("torch", "torchvision", "scipy", "sklearn"):
    sys.modules[name] = None  # importing them fails

import json
import numpy as np

from fedcaptor.client.device import Device
from fedcaptor.client.offer import Offer
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.kept_models import keep, read_models
from fedcaptor.client.personal import personalise

device = Device.of(json.loads(sys.argv[1]))
device.work("scores")
learner = device._learner(replying=False)
counts = learner._log().__enter__().counts()
images = learner.feed.use(0)
result = personalise(learner.engine, Offer(), counts, images, images, device.config)
keep(device.folder, learner.engine, result, None, 0)
print(result.kind, read_models(device.folder, learner.engine, "kept_full").own.predict(images).tolist())
"""


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_device_records_scores_and_personalises_without_torch(
    precision: str, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    images, labels = tiny.images(60, 1)
    for n, image in enumerate(images[labels < 2]):
        Image.fromarray(image[..., 0]).save(tmp_path / "photos" / f"{n}.png")
    personal = f'tolerance = 0.5\nladder = [0.5]\nprecision = "{precision}"'
    (tmp_path / "phone.toml").write_text(f"[personal]\n{personal}\n[planner]\nmultiple = 1\n")
    node = {"folder": tmp_path / "own", "images": tmp_path / "photos", "config": tmp_path / "phone.toml", **files}
    node = {name: str(path) for name, path in node.items()} | {"model": tiny.MODEL, "input-shape": "1x12x12"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(node)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("personal [")
    assert (tmp_path / "own" / "scores.safetensors").exists()
    assert (tmp_path / "own" / "submodel.onnx").exists()
    assert json.loads((tmp_path / "own" / "outcome.json").read_text())["precision"] == precision


def test_eight_bits_want_a_graph(tmp_path: Path) -> None:
    (tmp_path / "phone.toml").write_text('[personal]\nprecision = "int8"\n')
    node = {name: str(tmp_path / name) for name in ("folder", "images", "weights")}
    node |= {"config": str(tmp_path / "phone.toml"), "model": tiny.MODEL, "input-shape": "1x12x12"}
    assert Device.of({**node, "graph": str(tmp_path / "network.onnx")}).config.personal.precision == "int8"
    with pytest.raises(ConfigError, match=r"precision is int8, .*: give the network's graph"):
        Device.of(node)
    with pytest.raises(ConfigError, match=r"precision is int8, .*: set run.engine = \"onnx\""):
        build_world(load_config(None, ["personal.precision=int8"]), tmp_path / "run")
