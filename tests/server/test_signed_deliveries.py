"""The server signs what phones with the operator's key accept, and the same bytes after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from fedcaptor.client.app import make_app
from fedcaptor.common.messages import DeliverRequest, digest_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.submodel_file import decode
from fedcaptor.common.wire import unpack
from fedcaptor.server import flow as flow_module
from fedcaptor.server import phases
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.planning import Reference
from fedcaptor.server.start import courier_of, open_run
from fedcaptor.simulations.local_grid import LocalGrid
from tests.attacks.server.devices import Owner, learner, photos, settings_of
from tests.attacks.server.devices import phone as device
from tests.client.fake_engine import CLASSES, GROUPS, FakeEngine
from tests.common.secure_cohort import identity
from tests.fuzz.targets import submodel_file

OPERATOR, DIGEST, PHONES = identity("operator"), "a" * 64, 3
BASE: Any = SimpleNamespace(
    groups=GROUPS, weights_digest=FakeEngine().weights_digest, state={}, scores=FakeEngine().scores
)
STATE = decode(np.frombuffer(submodel_file.file(), np.uint8), GROUPS, submodel_file.PLAN)
MADE = ClusterSubmodels(
    [submodel_file.PLAN, Plan.of(GROUPS, {"a": [0], "b": [0, 1], "c": [0, 1]})], [STATE, STATE], (), ()
)
CENTROIDS = np.eye(2, CLASSES)


class Killed(BaseException):
    pass


class Fleet:
    """Phones that want signed deliveries, one after the other; the server stops before phone number `stop` answers."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.config, self.stop = folder, settings_of(f'delivery.mode="{mode}"', "privacy.sums=local"), -1
        self.seen: list[tuple[int, DeliverRequest, str]] = []

    def answer(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if number == self.stop:
            raise Killed
        request, tensors = unpack(message.content, DeliverRequest)
        self.seen.append((number, request, digest_of(tensors)))
        folder = self.folder / str(number)
        found = learner(folder, Owner(0), self.config, replying=False)
        one = replace(device(folder, Owner(0), self.config), learner=lambda: found, operator=identity_of(OPERATOR))
        return make_app(lambda context: one)(message, context)

    def deliver(self, *rounds: int, key: Any = OPERATOR) -> dict[str, int]:
        """Let the server deliver in `rounds`; returns the last tally."""
        grid = LocalGrid(self.answer, PHONES)
        courier = courier_of(self.config, grid, DIGEST, lambda *_: None, operator=key)
        with open_run(
            self.config, BASE, Reference(photos(0, 1, 2), np.arange(3)), grid, digest=DIGEST, courier=courier,
            state=f"sqlite:///{self.folder / 'state.db'}", pictures=self.folder,
        ) as flow:  # fmt: skip
            for round in rounds:
                phases.deliver(flow, round, CENTROIDS, MADE, None)
            return dict(flow.journal.phase(rounds[-1], "deliver", _never)[0]["tally"])


def _never() -> Any:
    raise AssertionError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_to(seconds: int) -> None:
        monkeypatch.setattr(flow_module, "time", SimpleNamespace(time=lambda: seconds + 0.5))

    return set_to


@pytest.mark.parametrize(("mode", "messages"), [("plan", 1), ("submodel", 2)])
def test_phones_accept_what_the_server_signs_and_again_after_a_restart(
    tmp_path: Path, clock: Callable[[int], None], mode: str, messages: int
) -> None:
    fleet = Fleet(tmp_path, mode)
    clock(1000)
    fleet.stop = 2
    with pytest.raises(Killed):
        fleet.deliver(1)
    before, fleet.seen, fleet.stop = fleet.seen, [], -1
    clock(2000)
    assert fleet.deliver(1)["replies"] == messages * PHONES
    assert before == fleet.seen[:2]
    assert {request.issued for _, request, _ in fleet.seen} == {1000}
    clock(900)  # it was set back
    assert fleet.deliver(1, 2)["replies"] == messages * PHONES
    assert {request.issued for _, request, _ in fleet.seen if request.round == 2} == {1001}


def test_without_a_key_nothing_is_signed_or_journaled(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "plan")
    tally = fleet.deliver(1, key=None)
    assert (tally["replies"], tally["refused"]) == (0, {"wrong_digest": PHONES * fleet.config.rounds.attempts})
    assert {(request.issued, request.signature) for _, request, _ in fleet.seen} == {(0, "")}
    with open_run(
        fleet.config, BASE, None, LocalGrid(fleet.answer, 1), digest=DIGEST, pictures=tmp_path,  # type: ignore[arg-type]
        state=f"sqlite:///{tmp_path / 'state.db'}",
    ) as flow:  # fmt: skip
        assert list(flow.journal.seconds()) == [(1, "deliver")]
