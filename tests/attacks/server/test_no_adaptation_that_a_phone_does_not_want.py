"""A server moves a phone's batch norms only where the phone is configured for it, within bounds, and as was signed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcaptor.client.folder import ADAPTATION_FILE
from fedcaptor.common.arrays import Tensors
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.secure.delivery import sign
from tests.attacks.server.devices import CountingEngine, settings_of
from tests.attacks.server.test_no_delivery_without_the_operators_signature import FOREIGN, OPERATOR, Asked
from tests.client.fake_engine import FakeEngine

GOOD = {
    "looks": np.zeros((2, 6), np.float32),
    "look_source": np.zeros(6, np.float32),
    "moments": np.zeros((2, 0), np.float32),
}


def asking(issued: int = 1000) -> DeliverRequest:
    return DeliverRequest(
        run="a" * 64, round=1, request="b" * 32, mode="adapt", weights=FakeEngine.weights_digest, clusters=(),
        digests=(), issued=issued,
    )  # fmt: skip


def accepted(asked: Asked, request: DeliverRequest, tensors: Tensors) -> bool:
    """Whether the phone accepts; it stores nothing otherwise, and looks at no image either way."""
    CountingEngine.looked, before = 0, asked.stored.get(ADAPTATION_FILE)
    found = asked.accepts(request, tensors)
    assert CountingEngine.looked == 0
    assert found or asked.stored.get(ADAPTATION_FILE) == before
    return found


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path, settings_of("domain.enabled=true"))


def test_a_phone_that_was_not_configured_for_it_declines(tmp_path: Path) -> None:
    phone = Asked(tmp_path, settings_of()).phone()
    with pytest.raises(PrivacyError, match=r"domain\.enabled is false"):
        phone.deliver(sign(asking(), GOOD, OPERATOR), GOOD)
    assert not (tmp_path / ADAPTATION_FILE).exists()


def test_only_the_operators_adaptation_is_taken_and_none_that_is_older(asked: Asked) -> None:
    assert not accepted(asked, asking(), GOOD)
    assert not accepted(asked, sign(asking(), GOOD, FOREIGN), GOOD)
    other = {**GOOD, "look_source": np.ones(6, np.float32)}
    assert not accepted(asked, sign(asking(), GOOD, OPERATOR), other)
    assert accepted(asked, sign(asking(), GOOD, OPERATOR), GOOD)
    assert ADAPTATION_FILE in asked.stored
    assert not accepted(asked, sign(asking(999), other, OPERATOR), other)
    assert accepted(asked, sign(asking(1001), other, OPERATOR), other)


@pytest.mark.parametrize(
    "changed",
    [
        {"looks": np.zeros((9, 6), np.float32)},
        {"looks": np.full((2, 6), 99, np.float32)},
        {"moments": np.zeros((2, 4), np.float32)},
        {"look_source": np.zeros(18, np.float32)},
        {},
    ],
    ids=["many", "far", "moments", "colours", "nothing"],
)
def test_what_does_not_fit_is_refused_whoever_signed_it(asked: Asked, changed: Tensors) -> None:
    tensors = {**GOOD, **changed} if changed else {}
    assert not accepted(asked, sign(asking(), tensors, OPERATOR), tensors)
