"""Messages: any header and tensors in a Flower record, as any kind of message."""

from __future__ import annotations

import numpy as np
from flwr.app import RecordDict

from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.messages import (
    DeliverReply,
    DeliverRequest,
    Header,
    LocalReply,
    LocalRequest,
    MaskedReply,
    MaskedRequest,
    SumFields,
    SumReply,
    SumRequest,
    digest_of,
)
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.wire import pack, unpack
from tests.fuzz.parts import chosen, join, split
from tests.fuzz.records import IN_ARRAYS, header_of, record_of, tensors_of, text

KINDS: tuple[type[Header], ...] = (
    SumRequest,
    SumReply,
    MaskedRequest,
    MaskedReply,
    LocalRequest,
    LocalReply,
    DeliverRequest,
    DeliverReply,
)


def seeds() -> dict[str, bytes]:
    names = {"run": "a" * 64, "round": 3, "request": "b" * 32}
    spec = SumSpec("1-usage-1", 6, 2.0, 1024.0, 1.0, cohort=50, min_survivors=40, min_cohort=20)
    tensors = {"centroids": np.eye(2, 3, dtype=np.float32), "pool": np.arange(4, dtype=np.int32)}
    secure = {"secure": np.arange(40, dtype=np.uint8)}
    asked = SumRequest(**names, kind="usage", sum=SumFields.of(spec))
    masked = MaskedRequest(
        **names,
        kind="usage",
        sum=SumFields.of(spec),
        attempt="e" * 32,
        tensors=digest_of(tensors),
        dropout=0.1,
        corrupted=0.05,
    )
    local = LocalRequest(**names, classes=3, present=0.75, absent=0.25)
    deliver = DeliverRequest(
        **names, mode="plan", weights="e" * 64, clusters=(0, 5), digests=("c" * 64, "d" * 64), tiers=("low", "high")
    )
    plan = np.arange(3, dtype=np.uint8)
    messages = [
        (asked, tensors),
        (SumReply.to(asked), {"values": np.arange(6, dtype=np.uint32)}),
        (masked, {**tensors, **secure}),
        (MaskedReply.to(masked), secure),
        (local, {}),
        (LocalReply.to(local), {"answer": np.array([8], np.uint8)}),
        (deliver, {"plan.0": plan, "plan.5": plan, "reference": plan, "centroids": tensors["centroids"]}),
        (DeliverReply(**names, accepted=True, cluster=1), {}),
    ]
    return {
        type(header).__name__: _encoded(pack(header, arrays, IN_ARRAYS), type(header)) for header, arrays in messages
    }


def one(data: bytes) -> bool:
    kind, header_text, *rest = split(data, 2)
    record = record_of(text(header_text), rest)
    expected = KINDS[chosen(kind, len(KINDS))]
    try:
        header, tensors = unpack(record, expected)
    except WireError:
        return False
    again, copies = unpack(pack(header, tensors), expected)
    assert again == header
    assert digest_of(copies) == digest_of(tensors)
    return _meant(header, tensors)


def _meant(header: Header, tensors: dict[str, np.ndarray]) -> bool:
    """Do what a receiver does next."""
    try:
        if isinstance(header, MaskedRequest):
            header.terms()
            header.question(tensors)
        elif isinstance(header, SumRequest | LocalRequest):
            header.spec() if isinstance(header, LocalRequest) else header.sum.spec()
    except (PrivacyError, WireError):
        return False
    return bool(header.group)


def _encoded(record: RecordDict, kind: type[Header]) -> bytes:
    return join(bytes([KINDS.index(kind)]), header_of(record).encode(), *tensors_of(record))
