"""The resident client without a network: when it checks in, what it does on trouble, and what bounds a message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree

from fedcaptor.client import resident
from fedcaptor.client.device import Device
from fedcaptor.client.fleet import MAX_OBJECTS, _within
from fedcaptor.client.folder import WORK_LOCK
from fedcaptor.client.node_key import node_key
from fedcaptor.client.process_lock import acquire
from fedcaptor.client.resident import SOON, Resident, only_one, pause
from fedcaptor.client.resting import Rest
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, LinkError, StateError
from fedcaptor.simulations.local_grid import LocalGrid


class Link:
    """A connection that brings `messages` and keeps what is sent."""

    node_id = 7

    def __init__(self, *messages: Message) -> None:
        self.messages, self.received = list(messages), 0
        self.sent: list[Message] = []

    def receive(self) -> Message | None:
        self.received += 1
        return self.messages.pop(0) if self.messages else None

    def send(self, reply: Message, seconds: float) -> None:
        self.sent.append(reply)


def foreign(kind: str) -> Message:
    """What an outsider's run asks."""
    grid = LocalGrid(lambda message, context: message, 1)
    message = grid.create_message(RecordDict({"x": ConfigRecord({})}), kind, 7, "1")
    message.metadata.__dict__["_message_id"] = "m"
    return message


def phone(folder: Path, monkeypatch: pytest.MonkeyPatch, attempts: list[Any], *settings: str) -> Resident:
    """A resident whose attempts to connect give links, or raise; it stops after the last one."""
    config = load_config(None, [f'device.key="{folder / "key"}"', "device.poll_seconds=0.01", *settings])
    one = Resident(Device({}, folder / "own", folder, folder, "", (1, 4, 4), config), once=0.05)

    @contextmanager
    def connected(*_: Any) -> Iterator[Link]:
        found = attempts.pop(0)
        if not attempts:
            one.once = 0.05
        if isinstance(found, Exception):
            raise found
        yield found

    waited: list[float] = []
    monkeypatch.setattr(resident, "connected", connected)
    monkeypatch.setattr(resident, "node_key", lambda path: None)
    monkeypatch.setattr(one.stop, "wait", lambda seconds: waited.append(seconds))
    monkeypatch.setattr(Device, "_due", lambda self, kind: False)
    one.waited = waited  # type: ignore[attr-defined]
    return one


def test_foreign_messages_get_an_error_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(*map(foreign, ("query", "train", "evaluate", "query.masked")))
    phone(tmp_path, monkeypatch, [link]).run()
    assert [reply.error.code for reply in link.sent] == [ErrorCode.CLIENT_APP_RAISED_EXCEPTION] * 4
    assert not any("/" in str(reply.error.reason) for reply in link.sent)


def test_trouble_is_told_once_and_attempts_become_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = phone(tmp_path, monkeypatch, [*(LinkError("nobody there") for _ in range(12)), Link()])
    one.run()
    assert caplog.text.count("nobody there") == 1
    pauses = [seconds for seconds in one.waited[1:] if seconds > 0.5]  # type: ignore[attr-defined]
    assert pauses[3] > pauses[0]
    assert 100 < max(pauses) <= 300


def test_it_checks_in_while_the_condition_holds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    link, charging = Link(), tmp_path / "charging"
    condition = f"test -e {charging} || {{ echo no charger >&2; false; }}"
    one = phone(tmp_path, monkeypatch, [link], f'device.condition="{condition}"', "device.condition_seconds=7")
    one.run()  # once: it does not wait for the charger
    assert link.received == 0
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if pauses.count(7) == 3:
            charging.touch()
            one.once = 0.05

    monkeypatch.setattr(one.stop, "wait", wait)
    one.once = None
    one.run()
    assert pauses[1:4] == [7, 7, 7]
    assert link.received > 0
    assert caplog.text.count("device.condition does not hold: no charger") == 2  # once a run


def test_a_reply_whose_wait_was_cut_short_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(foreign("query"))
    one = phone(tmp_path, monkeypatch, [link])
    monkeypatch.setattr(resident, "_answered", lambda app, message, node: one.stop.set() or message)
    one.run()
    assert link.sent == []


@pytest.mark.parametrize("works", [False, True])
def test_a_phone_rests_whether_its_child_works_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    one = phone(tmp_path, monkeypatch, [Link(), Link()], "device.rest_seconds=0.02")
    one.rests, one.once, rested = True, None, []
    monkeypatch.setattr(resident, "waiting", lambda *_: None)
    monkeypatch.setattr(Rest, "begin", lambda self, stopped: (rested.append(self), one.stop.set()))
    lock = acquire(tmp_path / "own" / WORK_LOCK) if works else None
    one.run()
    assert len(rested) == 1
    if lock is not None:
        os.close(lock)


@pytest.mark.parametrize("usual", [0.1, 0.5, 2.0, 9.0, 3600.0])
@pytest.mark.parametrize("due", [0.5, 2.0, 9.0, 60.0])
def test_looks_are_few_until_a_message_is_due_and_find_it_soon(usual: float, due: float) -> None:
    passed, looks = 0.0, 0
    while passed < due:
        passed += pause(passed, usual, 3.0)
        looks += 1
    assert passed - due <= min(3.0, max(SOON + due / 4, usual / 2))
    if due == usual:
        assert looks <= 7


def test_one_process_serves_a_phone(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(StateError, match="has a resident process already"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_message_is_bounded_while_it_is_pulled() -> None:
    tree = ObjectTree(object_id="a", children=[ObjectTree(object_id="b")])
    pull = _within(10, tree, lambda object_id: b"123456")
    pull("a")
    with pytest.raises(LinkError, match=r"more than 10 bytes .* raise delivery.max_bytes"):
        pull("b")
    many = ObjectTree(object_id="a", children=[ObjectTree(object_id=str(n)) for n in range(MAX_OBJECTS)])
    with pytest.raises(LinkError, match="parts"):
        _within(10, many, pull)


def test_a_file_that_is_no_node_key_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="holds no node key: make one"):
        node_key(tmp_path / "key")


@pytest.mark.parametrize("missing", ["superlink", "key", "folder", "images", "weights", "model", "input_shape"])
def test_a_setting_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    values = {name: f'"{name}"' for name in ("superlink", "key", "folder", "images", "weights", "model")}
    values["input_shape"] = "[1, 28, 28]"
    del values[missing]
    file = tmp_path / "phone.toml"
    file.write_text("[device]\n" + "".join(f"{name} = {value}\n" for name, value in values.items()))
    with pytest.raises(ConfigError, match=f"device.{missing} is not given"):
        Device.of_file(file)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    file.write_text(
        '[device]\nsuperlink = "a:1"\nkey = "k"\nfolder = "own"\nimages = "/photos"\nweights = "w"\n'
        'model = "small-cnn"\n'
        "input_shape = [1, 28, 28]\n"
    )
    device = Device.of_file(file)
    assert (device.folder, device.images) == (tmp_path / "own", Path("/photos"))
    assert replace(Device.of(device.node), node=device.node) == device
