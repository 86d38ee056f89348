"""What a phone's fetch brings, over TLS from a catalogue that serves on loopback."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.client.catalogue import Catalogue
from fedcaptor.client.fetch import fetch
from fedcaptor.client.folder import erase
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, LinkError, StateError, WireError
from fedcaptor.common.weights_file import digest_of_file
from tests.catalogue.serving import OPERATOR, Served, cutting, prepare, random_file, served, weights

pytestmark = pytest.mark.slow


def phone(server: Served, port: int | None = None, name: str = "phone", **settings: Any) -> Path:
    """A phone's file beside its folder; its weights are `base.safetensors`, its graph `network.onnx`."""
    folder = server.folder / name
    folder.mkdir(exist_ok=True)
    file = folder / "phone.toml"
    values = {
        "catalogue": f"localhost:{port or server.port}",
        "root_certificates": "../ca.pem",
        "key": "../phone.key",
        "folder": "own",
        "weights": "base.safetensors",
        "graph": "network.onnx",
        "input_shape": [1, 28, 28],
        "operator": "../operator.pub.pem",
        **settings,
    }
    file.write_text("[device]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return file


def no_sleep(seconds: float) -> None:
    pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    store = prepare(tmp_path)
    files = [weights(tmp_path / "base.safetensors", 1), random_file(tmp_path / "network.onnx", 50_000)]
    store.add(files, OPERATOR, 1)
    with served(tmp_path) as running:
        yield running


def publish(server: Served, *files: Path) -> None:
    server.service.store.add(files, OPERATOR, 1)


def test_the_files_come_once_and_an_update_brings_what_changed(server: Served) -> None:
    file = phone(server)
    first = fetch(file)
    assert [(one.target.name, one.received) for one in first] == [
        (name, (server.folder / name).stat().st_size) for name in ("base.safetensors", "network.onnx")
    ]
    assert fetch(file) == []
    publish(server, weights(server.folder / "base.safetensors", 1, changed=1))
    (update,) = fetch(file)
    assert update.received == 80_000
    assert (file.parent / "base.safetensors").read_bytes() == (server.folder / "base.safetensors").read_bytes()


def test_a_hundred_cuts_at_random_places_end_with_the_right_bytes(server: Served) -> None:
    large = random_file(server.folder / "network.onnx", 12 << 20)
    publish(server, large)
    rng = random.Random(0)
    budgets = itertools.chain((rng.randrange(40 << 10, 128 << 10) for _ in range(100)), itertools.repeat(1 << 40))
    with cutting(server.port, budgets) as (port, used):
        file = phone(server, port)
        received = {one.target.name: one.received for one in fetch(file, no_sleep)}
    assert len(used) > 100
    assert (file.parent / "network.onnx").read_bytes() == large.read_bytes()
    assert received["network.onnx"] == large.stat().st_size  # nothing came twice


def test_a_killed_fetch_goes_on_where_it_was(server: Served) -> None:
    large = random_file(server.folder / "network.onnx", 24 << 20)
    publish(server, large)
    budgets = itertools.chain([8 << 20], itertools.repeat(0))
    with cutting(server.port, budgets) as (port, _):
        process = subprocess.Popen([sys.executable, "-m", "fedcaptor.client.fetch", phone(server, port)])
        folder = server.folder / "phone"
        while not any(path.stat().st_size > 4 << 20 for path in folder.glob(".network.onnx.*.partial")):
            assert process.poll() is None
        process.kill()
        process.wait()
    (partial,) = folder.glob(".network.onnx.*.partial")
    had = partial.stat().st_size
    done = {one.target.name: one for one in fetch(phone(server))}
    assert done["network.onnx"].received == large.stat().st_size - had
    assert (folder / "network.onnx").read_bytes() == large.read_bytes()


def test_wrong_bytes_of_the_server_are_never_installed(server: Served) -> None:
    file = phone(server)
    fetch(file)
    before = (file.parent / "base.safetensors").read_bytes()
    publish(server, weights(server.folder / "base.safetensors", 1, changed=6))
    blobs = server.folder / "store" / "blobs"
    for path in blobs.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(LinkError, match="bytes that are not those"):
        fetch(file, no_sleep)
    assert (file.parent / "base.safetensors").read_bytes() == before


def test_an_older_manifest_is_refused_also_after_erasing(server: Served) -> None:
    file, latest = phone(server), server.folder / "store" / "latest.json"
    fetch(file)
    old = latest.read_bytes()
    publish(server, weights(server.folder / "base.safetensors", 2))
    fetch(file)
    latest.write_bytes(old)
    for _ in range(2):
        with pytest.raises(WireError, match="replayed"):
            fetch(file)
        erase(file.parent / "own", load_config(file).privacy)


def test_another_signer_is_refused(server: Served) -> None:
    with pytest.raises(WireError, match="not signed by this phone's operator"):
        fetch(phone(server, operator="ab" * 32))


def test_weights_other_than_the_pinned_ones_are_not_installed(server: Served) -> None:
    digest = digest_of_file(server.folder / "base.safetensors", 1)
    with pytest.raises(ConfigError, match="the old file stays until the operator has published those"):
        fetch(phone(server, weights_digest="a" * 64))
    assert not (server.folder / "phone" / "base.safetensors").exists()
    assert not (server.folder / "phone" / "network.onnx").exists()  # all or none
    assert len(fetch(phone(server, weights_digest=digest))) == 2


def test_what_is_missing_is_named(server: Served) -> None:
    with pytest.raises(LinkError, match=r"has no other.onnx, but base.safetensors, network.onnx"):
        fetch(phone(server, graph="other.onnx"))
    for key in ("catalogue", "operator", "key", "folder", "weights"):
        with pytest.raises(ConfigError, match=f"device.{key} is not given"):
            fetch(phone(server, **{key: ""}))


def test_one_process_fetches_at_a_time(server: Served) -> None:
    file = phone(server)

    def second(seconds: float) -> None:
        with pytest.raises(StateError, match="fetches already"):
            fetch(file)
        raise KeyboardInterrupt

    with cutting(server.port, itertools.repeat(0)) as (port, _), pytest.raises(KeyboardInterrupt):
        fetch(phone(server, port), second)


def test_phones_of_any_owner_ask_for_the_same(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a phone knows of its owner, and the images, change no request."""
    asked: list[list[tuple[str, int, int]]] = []
    read = Catalogue.read

    def watched(self: Catalogue, resource: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        asked[-1].append((resource, offset, limit))
        return read(self, resource, offset, limit)

    monkeypatch.setattr(Catalogue, "read", watched)
    for number, classes in enumerate(((), (0, 1), (7,))):
        asked.append([])
        file = phone(server, name=f"phone{number}", images="photos")
        own = file.parent / "own"
        own.mkdir()
        if classes:
            (own / "outcome.json").write_text(json.dumps({"classes": classes}))
            (own / "submodel.safetensors").write_bytes(bytes(100 * number))
            (file.parent / "photos").mkdir()
            random_file(file.parent / "photos" / "a.png", 100)
        fetch(file)
    publish(server, weights(server.folder / "base.safetensors", 1, changed=2))
    for number in range(3):
        asked.append([])
        fetch(server.folder / f"phone{number}" / "phone.toml")
    assert asked[0] == asked[1] == asked[2]
    assert asked[3] == asked[4] == asked[5]
    assert len(asked[0]) == 3
    assert len(asked[3]) == 2


def test_the_command_says_what_came(server: Served) -> None:
    done = CliRunner().invoke(app, ["phone", "fetch", "--config", str(phone(server))])
    assert done.exit_code == 0, done.output
    assert "base.safetensors: 480,5" in done.output
    assert "network.onnx: 50,000 bytes, 50,000 of them over the network" in done.output
