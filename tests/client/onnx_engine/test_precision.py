"""Submodels in eight bits on a phone: the trained network that is shipped, and images that are embedded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from fedcaptor.client.kept_models import keep, read_models
from fedcaptor.client.offer import Offer
from fedcaptor.client.onnx_engine import OnnxEngine
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.common.assets import asset
from fedcaptor.common.config import parse
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import ModelError
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network_graph import network_graph

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

WEIGHTS = asset("simulations/models/small_cnn_fashion.safetensors")
OWN = np.array([1, 3, 7])
SETTINGS = parse({"personal": {"precision": "int8", "ladder": [0.3]}, "usage": {"prior": 0.0}})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    graph = tmp_path_factory.mktemp("graph") / "network.onnx"
    network_graph(BaseModel.load(WEIGHTS, "small-cnn", (1, 28, 28))).save(graph)
    return OnnxEngine.of(graph, WEIGHTS)


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    data = load("embedded")
    return data.x[np.isin(data.y, OWN)][:900]


def personalised(engine: OnnxEngine, photos: NDArray[np.uint8]) -> Personalised:
    counts = np.bincount(OWN, minlength=10) * 100.0
    return personalise(engine, Offer(), counts, photos[:100], photos[100:300], SETTINGS)


def of_unequal_channels(engine: OnnxEngine) -> OnnxEngine:
    """Return the same function with channels of the first layer up to ten thousand times as large as others.

    The next layer's weights for them are that much smaller. One range for all is too coarse for the small ones.
    """
    state = {name: tensor.copy() for name, tensor in engine.network.state.items()}
    factors = np.logspace(0, 4, len(state["features.1.weight"]), dtype=np.float32)
    for name in ("features.1.weight", "features.1.bias"):  # the norm behind the first convolution
        state[name] *= factors
    state[f"{engine.groups.prunable[0].consumers[0].layer}.weight"] /= factors.reshape(1, -1, 1, 1)
    return replace(engine, network=engine.network.with_state(state))


def agreement(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return float((left == right).mean())


def test_the_full_model_answers_alike_in_a_quarter_of_the_bytes(engine: OnnxEngine) -> None:
    x = load("embedded").x
    whole = engine.whole()
    small = engine.quantised(whole, x[:200])
    assert agreement(small.predict(x[1000:3000]), whole.predict(x[1000:3000])) >= 0.98
    values = sum(tensor.size for tensor in engine.tensors(whole).values())
    assert len(engine.program(small)) < 0.27 * 4 * values
    assert small.predict(x[:0]).shape == (0,)


def test_a_phone_keeps_eight_bits_and_an_app_runs_the_file(
    engine: OnnxEngine, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    found = personalised(engine, photos)
    assert (found.kind, found.precision, found.classes.tolist()) == ("personal", "int8", OWN.tolist())
    note, others = keep(tmp_path, engine, found, None, 0), photos[300:]
    assert (note.precision, note.file) == ("int8", "submodel.onnx")
    assert agreement(found.submodel.predict(others), OWN[engine.scores(others)[:, OWN].argmax(1)]) >= 0.95

    session = onnxruntime.InferenceSession(tmp_path / "submodel.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.shape[1:]) == ("pixels", [1, 28, 28])
    pixels = others.transpose(0, 3, 1, 2).astype(np.float32) / 255
    answers = OWN[session.run(["scores"], {"pixels": pixels})[0].argmax(1)]
    assert agreement(answers, found.submodel.predict(others)) == 1
    again = read_models(tmp_path, engine, "abstain").own
    np.testing.assert_array_equal(again.scores(others), found.submodel.scores(others))


def test_a_phone_keeps_single_precision_where_eight_bits_lose_too_much(
    engine: OnnxEngine, photos: NDArray[np.uint8], tmp_path: Path
) -> None:
    crafted = of_unequal_channels(engine)
    x = photos[:500]
    np.testing.assert_allclose(crafted.scores(x), engine.scores(x), rtol=0, atol=1e-3)
    assert agreement(crafted.quantised(crafted.whole(), x).predict(x), crafted.predict(x)) < 0.9
    found = personalised(crafted, photos)
    assert (found.kind, found.precision) == ("personal", "float32")
    note = keep(tmp_path, crafted, found, None, 0)
    assert (note.precision, note.file) == ("float32", "submodel.onnx")
    again = read_models(tmp_path, crafted, "abstain").own
    assert agreement(again.predict(photos), found.submodel.predict(photos)) >= 0.99  # the file has half precision


def test_a_phone_without_the_full_model_keeps_eight_bits_too(engine: OnnxEngine, photos: NDArray[np.uint8]) -> None:
    cluster = engine.restricted(np.array([1, 3, 5, 7]))
    inner = engine.within(cluster)
    own = inner.restricted(np.array([0, 1, 3]))
    widened = engine.widened(
        inner.quantised(own, photos[:100]), Plan.of(engine.groups, {engine.groups.output.name: OWN})
    )
    assert widened.classes.tolist() == OWN.tolist()
    assert agreement(widened.predict(photos), OWN[engine.scores(photos)[:, OWN].argmax(1)]) >= 0.98


def test_a_network_without_eight_bits_keeps_single_precision(
    engine: OnnxEngine, photos: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one with an operation that the quantiser does not know."""
    monkeypatch.setattr("onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model", lambda self: 1 / 0)
    found = personalised(engine, photos)
    assert (found.kind, found.precision) == ("personal", "float32")
    assert "small-cnn has no eight bits: ZeroDivisionError" in caplog.text


def test_a_damaged_file_is_refused(engine: OnnxEngine, photos: NDArray[np.uint8], tmp_path: Path) -> None:
    found = personalised(engine, photos)
    keep(tmp_path, engine, found, None, 0)
    file = tmp_path / "submodel.onnx"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:5000] + bytes([content[5000] ^ 1]) + content[5001:], b""):
        file.write_bytes(damaged)
        assert read_models(tmp_path, engine, "abstain").own is None
    plan = found.submodel.plan
    for damaged in (b"", b"no program", content[: len(content) // 2]):
        with pytest.raises(ModelError, match="no program of a submodel"):
            engine.of_program(plan, damaged)
    with pytest.raises(ModelError, match=r"has 3 outputs, its plan keeps 10 classes: delete outcome\.json"):
        engine.of_program(Plan.of(engine.groups, {}), content)
