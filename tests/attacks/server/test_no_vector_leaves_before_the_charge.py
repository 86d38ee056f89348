"""A phone's disk fails, at any write of the step whose reply holds the vector: no reply leaves without its charge."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fedcaptor.client.masked_sums import MaskedLedger
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.secure.messages import MASKING
from tests.simulations.test_masked import World, never

PHONE = 5


@pytest.mark.parametrize("write", ["_charge", "_keep"])
def test_a_write_that_fails_leaves_neither_reply_nor_charge(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.lost = lambda request, number: request.step == MASKING
    with pytest.raises(PrivacyError):
        world.sum()
    world.lost = never
    request, tensors = world.asked[PHONE, MASKING]
    honest = getattr(MaskedLedger, write)

    def fails(ledger: MaskedLedger, *rest: Any) -> None:
        honest(ledger, *rest)
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(MaskedLedger, write, fails)
        for _ in range(2):
            with pytest.raises(Exception, match="disk is full"):
                world.phone(PHONE).masked(request, tensors)
    assert world.charges()[PHONE] == 0
    first = world.phone(PHONE).masked(request, tensors).tobytes()
    assert world.charges()[PHONE] == 1
    assert world.phone(PHONE).masked(request, tensors).tobytes() == first
    assert world.charges()[PHONE] == 1
