"""Packed plans."""

from __future__ import annotations

import numpy as np

from fedcaptor.common.errors import PlanError
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan, unpack_plan
from tests.client.fake_engine import GROUPS


def seeds() -> dict[str, bytes]:
    kept = {"a": np.array([0, 2]), "b": np.array([1]), "c": np.array([0, 1])}
    return {"plan": pack_plan(kept, GROUPS).tobytes()}


def one(data: bytes) -> bool:
    try:
        plan = Plan.of(GROUPS, unpack_plan(np.frombuffer(data, np.uint8), GROUPS))
    except (PlanError, ValueError):  # the latter is what `unpack_plan` declares
        return False
    again = unpack_plan(pack_plan(plan.kept, GROUPS), GROUPS)
    assert Plan.of(GROUPS, again).digest == plan.digest
    return True
