"""The file of a submodel, for a plan that the phone knows."""

from __future__ import annotations

import numpy as np

from fedcaptor.common.errors import WireError
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.submodel_file import decode, encode
from tests.client.fake_engine import GROUPS
from tests.fuzz.parts import safetensors_file, safetensors_parts

PLAN = Plan.of(GROUPS, {"a": [0, 2], "b": [1, 2, 3], "c": [0, 2]})


def state() -> dict[str, np.ndarray]:
    """The whole network's."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32) if shape else np.array(7)
        for name, shape in GROUPS.tensors.items()
    }


def file() -> bytes:
    """A valid submodel of `PLAN`."""
    return encode(slice_state(state(), GROUPS, PLAN)).tobytes()


def seeds() -> dict[str, bytes]:
    return {"submodel": safetensors_parts(file())}


def one(data: bytes) -> bool:
    try:
        found = decode(np.frombuffer(safetensors_file(data), np.uint8), GROUPS, PLAN)
    except WireError:
        return False
    assert {name: array.shape for name, array in found.items()} == GROUPS.shapes(PLAN.counts())
    return True
