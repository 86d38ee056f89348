"""Deliveries of a server that makes digests right: any tensors that messages may carry.

What a phone accepts, its personal step from the full model can work with.
"""

from __future__ import annotations

import numpy as np

from fedcaptor.client.offer import read_offer
from fedcaptor.client.personal import personalise
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import load_config
from fedcaptor.common.data.mosaic import code
from fedcaptor.common.errors import PlanError, WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan, unpack_plan
from fedcaptor.common.submodel_file import digest
from fedcaptor.common.wire import TENSORS, pack, unpack
from tests.client.fake_engine import CLASSES, GROUPS, FakeEngine, pictures
from tests.fuzz.parts import chosen, join, split
from tests.fuzz.records import IN_ARRAYS, record_of, tensors_of
from tests.fuzz.targets import submodel_file

MODES = ("plan", "choose", "submodel")
CONFIG = load_config(None, ["personal.ladder=[0.4, 0.7]", "planner.multiple=1"])
ENGINE = FakeEngine()


def images(*labels: int) -> np.ndarray:
    """As in `pictures`, of the size that reference images have."""
    _, height, width = GROUPS.input_shape
    return np.pad(pictures(*labels), ((0, 0), (0, height - 1), (0, width - CLASSES - 1), (0, 0)))


def seeds() -> dict[str, bytes]:
    plans = [Plan.of(GROUPS, {"a": [0], "b": range(4 + n), "c": [0, 1]}) for n in range(4)]
    labels = np.tile(np.arange(CLASSES, dtype=np.int32), 3)
    common = {
        "centroids": np.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], np.float32),
        "reference": code(images(*labels)),
        "reference_labels": labels,
        "preference": np.full((12, CLASSES), 0.5, np.float32),
        "calibration": Calibration.none(CLASSES).packed(),
    }
    packed = [pack_plan(plan.kept, GROUPS) for plan in plans]
    file = np.frombuffer(submodel_file.file(), np.uint8)
    own = {"plan.1": pack_plan(submodel_file.PLAN.kept, GROUPS), "submodel.1": file}
    return {
        "plans": _encoded("plan", "", {**common, "plan.0": packed[0], "plan.1": packed[1]}),
        "tiers": _encoded("plan", "low high", {**common, **{f"plan.{n}": bits for n, bits in enumerate(packed)}}),
        "choose": _encoded("choose", "", {"centroids": common["centroids"]}),
        "submodel": _encoded("submodel", "", {**common, **own}),
    }


def one(data: bytes) -> bool:
    mode, tiers, *rest = split(data, 2)
    tensors = {name: array.data for name, array in record_of("", rest)[TENSORS].items()}
    clusters = [n for n in range(64) if f"plan.{n}" in tensors]
    request = DeliverRequest(
        run="a" * 64,
        round=1,
        request="b" * 32,
        mode=MODES[chosen(mode, len(MODES))],
        weights=ENGINE.weights_digest,
        clusters=tuple(clusters),
        digests=tuple(_digest(tensors[f"plan.{n}"], tensors.get(f"submodel.{n}")) for n in clusters),
        tiers=("low", "high") if tiers else (),
    )
    try:
        request, arrays = unpack(record_of(request.model_dump_json(), rest), DeliverRequest)
        offer = read_offer(request, arrays, ENGINE, CONFIG.delivery).of("low" if tiers else "")
    except WireError:
        return False
    if request.mode != "choose":
        personalise(ENGINE, offer, np.array([3.0, 0, 5]), images(0, 0, 2, 1), images(0, 2, 2), CONFIG)
    return True


def _digest(packed: bytes, file: bytes | None) -> str:
    try:
        plan = Plan.of(GROUPS, unpack_plan(np.frombuffer(packed, np.uint8), GROUPS))
    except (PlanError, ValueError):
        return "0" * 64
    return plan.digest if file is None else digest(plan, np.frombuffer(file, np.uint8))


def _encoded(mode: str, tiers: str, tensors: dict[str, np.ndarray]) -> bytes:
    request = DeliverRequest(
        run="a" * 64, round=1, request="b" * 32, mode="plan", weights="e" * 64, clusters=(), digests=()
    )
    return join(bytes([MODES.index(mode)]), tiers.encode(), *tensors_of(pack(request, tensors, IN_ARRAYS)))
