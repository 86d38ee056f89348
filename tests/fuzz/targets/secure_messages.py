"""The byte layout of masked sums' messages: what is accepted is what its fields are written as."""

from __future__ import annotations

from fedcaptor.common.errors import WireError
from fedcaptor.common.secure import messages
from tests.fuzz.targets.masked_sum import TRANSCRIPT

TAG = bytes(range(32))
KINDS = sorted(messages.Message.__subclasses__(), key=lambda kind: kind.KIND)


def seeds() -> dict[str, bytes]:
    sent = [message for step in TRANSCRIPT for message in (step.request, step.reply)]
    return {kind.__name__: data[:2] + TAG[:16] + data[18:] for kind, data in zip(KINDS, sent, strict=True)}


def one(data: bytes) -> bool:
    kind = KINDS[messages.kind_of(data) % len(KINDS)]
    try:
        message = kind.from_bytes(data, TAG)
    except WireError:
        return False
    assert message.to_bytes(TAG) == data
    return True
