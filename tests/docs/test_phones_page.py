"""What docs/phones.md says to an app's programmer and to a phone's operator works."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fedcaptor.client.device import Device
from fedcaptor.common.config import load_config, phone_config

PAGE = (Path(__file__).parents[2] / "docs" / "phones.md").read_text()
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
(SETTINGS,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)


def test_an_app_finds_the_current_submodel(tmp_path: Path) -> None:
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    content = b"a submodel"
    (tmp_path / "submodel.safetensors").write_bytes(content)
    note = {"digest": hashlib.sha256(content).hexdigest()}
    (tmp_path / "outcome.json").write_text(json.dumps(note))
    assert scope["current"](tmp_path) == tmp_path / "submodel.safetensors"
    (tmp_path / "outcome.json").write_text(json.dumps({"digest": None}))
    assert scope["current"](tmp_path) is None


def test_the_settings_that_it_shows_make_a_phone(tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    written = phone_config(load_config(None))
    shared = written[: written.index("[device]")]
    file.write_text(shared + re.sub(r"^operator = .*$", "", SETTINGS, flags=re.M))
    device = Device.of_file(file)
    assert device.folder == tmp_path / "own"
    assert device.input_shape == (1, 28, 28)
    assert device.config.device.spread_seconds == 600
