"""A phone that has the operator's key takes the operator's deliveries alone, whole and none older than the last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.client import folder as files
from fedcaptor.client import pending_delivery
from fedcaptor.client.app import make_app
from fedcaptor.client.phone import Phone
from fedcaptor.common.arrays import Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import DeliverReply, DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan
from fedcaptor.common.secure.delivery import sign
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.submodel_file import digest
from fedcaptor.common.wire import pack, unpack
from fedcaptor.simulations.local_grid import LocalGrid
from tests.attacks.server.devices import Owner, delivery, learner, settings_of
from tests.attacks.server.devices import phone as device
from tests.client.fake_engine import GROUPS
from tests.common.secure_cohort import identity
from tests.fuzz.targets import submodel_file

OPERATOR, FOREIGN = identity("operator"), identity("other operator")
FILE = np.frombuffer(submodel_file.file(), np.uint8)
OTHER = Plan.of(GROUPS, {"a": [0], "b": [0, 2], "c": [0, 1]})
BY_SUBMODEL = settings_of('delivery.mode="submodel"')


@dataclass
class Asked:
    """A phone in `folder` behind Flower's messages."""

    folder: Path
    config: Config

    def phone(self) -> Phone:
        found = learner(self.folder, Owner(1), self.config, replying=False)
        one = device(self.folder, Owner(1), self.config)
        return replace(one, learner=lambda: found, operator=identity_of(OPERATOR))

    def accepts(self, request: DeliverRequest, tensors: Tensors) -> bool:
        grid = LocalGrid(make_app(lambda context: self.phone()), 1)
        message = grid.create_message(pack(request, tensors), "query.deliver", next(iter(grid.get_node_ids())), "g")
        (reply,) = grid.send_and_receive([message])
        header, _ = unpack(reply.content, DeliverReply)
        return header.accepted

    @property
    def stored(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path, settings_of())


def offered(mode: str = "plan", issued: int = 1000, **changed: Any) -> tuple[DeliverRequest, dict[str, Any]]:
    """An unsigned delivery for one cluster."""
    request, tensors = delivery(*(() if mode == "choose" else (0, 1, 2)))
    named: dict[str, Any] = {"mode": mode, "issued": issued}
    if mode != "choose":
        tensors["plan.0"] = pack_plan(dict(submodel_file.PLAN.kept), GROUPS)
        named |= {"clusters": (0,), "digests": (submodel_file.PLAN.digest,)}
    if mode == "submodel":
        tensors["submodel.0"] = FILE
        named["digests"] = (digest(submodel_file.PLAN, FILE),)
    return request.model_copy(update={**named, **changed}), tensors


def signed(
    mode: str = "plan", issued: int = 1000, key: Ed25519PrivateKey = OPERATOR, **changed: Any
) -> tuple[DeliverRequest, dict[str, Any]]:
    request, tensors = offered(mode, issued, **changed)
    return sign(request, tensors, key), tensors


@pytest.mark.parametrize("mode", ["plan", "choose", "submodel"])
def test_an_unsigned_or_foreign_delivery_is_refused_in_every_mode(tmp_path: Path, mode: str) -> None:
    asked = Asked(tmp_path, settings_of() if mode == "plan" else BY_SUBMODEL)
    for request, tensors in (offered(mode), offered(mode, issued=0), signed(mode, key=FOREIGN)):
        assert not asked.accepts(request, tensors)
    assert asked.stored == {}


def test_a_delivery_that_was_changed_in_anything_is_refused(asked: Asked) -> None:
    request, tensors = signed()
    changes: list[dict[str, Any]] = [
        {"run": "c" * 64}, {"round": 2}, {"request": "d" * 64}, {"weights": "f" * 64}, {"issued": 1001},
        {"clusters": (1,)}, {"digests": (OTHER.digest,)}, {"tiers": ("low",)}, {"signature": "0" * 128},
        {"signature": ""},
    ]  # fmt: skip
    for change in changes:
        assert not asked.accepts(request.model_copy(update=change), tensors)
    for name, tensor in tensors.items():
        changed = tensor.copy()
        changed.reshape(-1)[0] = changed.reshape(-1)[0] + 1
        assert not asked.accepts(request, {**tensors, name: changed})
        assert not asked.accepts(request, {kept: tensors[kept] for kept in tensors if kept != name})
    assert not asked.accepts(request, {**tensors, "plan.1": tensors["plan.0"]})
    assert not asked.accepts(request, {**tensors, "plan.0": tensors["plan.0"].reshape(1, -1)})
    assert asked.stored == {}
    assert asked.accepts(request, tensors)


def test_a_delivery_does_not_pass_as_one_of_another_mode(tmp_path: Path) -> None:
    asked = Asked(tmp_path, BY_SUBMODEL)
    for given, taken in (("plan", "choose"), ("choose", "submodel"), ("submodel", "choose")):
        request, tensors = signed(given)
        assert not asked.accepts(request.model_copy(update={"mode": taken}), tensors)
    assert asked.stored == {}


def test_an_older_delivery_is_refused_also_by_an_erased_phone(asked: Asked) -> None:
    old, new = signed(issued=1000), signed(issued=1001, round=2)
    assert asked.accepts(*old)
    assert asked.accepts(*new)
    assert asked.accepts(*new)  # a repeat
    before = asked.stored
    assert not asked.accepts(*old)
    assert not asked.accepts(*signed(issued=1001, run="c" * 64))  # another one under the same number
    assert asked.stored == before
    files.erase(asked.folder, asked.config.privacy)
    before = asked.stored
    assert not asked.accepts(*old)
    assert asked.stored == before
    assert not pending_delivery.exists(asked.folder)
    assert asked.accepts(*new)


def test_question_and_answer_of_one_round_have_one_number(tmp_path: Path) -> None:
    """A restarted server asks for the cluster again, of a phone that has its submodel by now."""
    asked = Asked(tmp_path, BY_SUBMODEL)
    one, choose = asked.phone(), signed("choose")
    assert one.deliver(*choose) == 0
    one.deliver(*signed("submodel"))
    assert one.deliver(*choose) == 0
    one.deliver(*signed("submodel", 1001))
    with pytest.raises(WireError, match="issued as 1000, after one issued as 1001"):
        one.deliver(*choose)


def test_a_phone_without_the_key_takes_what_comes(tmp_path: Path) -> None:
    one = device(tmp_path, Owner(1))
    one.deliver(*signed(key=FOREIGN))
    one.deliver(*offered(issued=0))
    assert pending_delivery.exists(tmp_path)


def test_an_unsigned_delivery_has_the_bytes_that_it_always_had() -> None:
    """Simulated noise and faults are drawn by the digests of messages."""
    text = offered(issued=0)[0].model_dump_json()
    assert "issued" not in text
    assert "signature" not in text
