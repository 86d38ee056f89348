"""What docs/phones.md says to an app's programmer and to a phone's operator works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.client.device import Device
from fedcaptor.client.fallback import answer
from fedcaptor.client.kept_models import keep, read_models
from fedcaptor.client.offer import Offer
from fedcaptor.client.onnx_engine import Network, OnnxEngine
from fedcaptor.client.personal import personalise
from fedcaptor.common.config import load_config, parse, phone_config
from fedcaptor.common.torch_engine.network_graph import network_graph
from tests import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "phones.md").read_text()
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_app_finds_the_current_submodel_and_runs_it(precision: str, tmp_path: Path) -> None:
    _, weights = tiny.write(tmp_path, 600, 20)
    base, (images, labels) = tiny.base_model(weights), tiny.images(200, 1)
    engine = OnnxEngine(Network(network_graph(base), base.state, base.mean, base.std), base.groups)
    own = images[labels < 2]
    settings = parse({"personal": {"precision": precision, "tolerance": 0.5}, "planner": {"multiple": 1}})
    found = personalise(engine, Offer(), np.array([40.0, 40.0, 0, 0, 0, 0]), own, own, settings)
    folder = tmp_path / "own"
    keep(folder, engine, found, None, 0)
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    note, content = scope["current"](folder)
    assert (note["precision"], note["file"]) == (precision, "submodel.onnx")
    given = scope["answers"](note, content, own.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    models = read_models(folder, engine, "kept_full")
    np.testing.assert_array_equal(given, answer(engine, models, settings.fallback, own).alone)
    (folder / "outcome.json").write_text(json.dumps({**note, "digest": None}))
    assert scope["current"](folder) is None


def test_the_settings_that_it_shows_make_a_phone(tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    written = phone_config(load_config(None))
    shared = written[: written.index("[device]")]
    file.write_text(shared + re.sub(r"^operator = .*$", "", SETTINGS, flags=re.M))
    device = Device.of_file(file)
    assert device.folder == tmp_path / "own"
    assert device.input_shape == (1, 28, 28)
    assert device.config.device.spread_seconds == 600
