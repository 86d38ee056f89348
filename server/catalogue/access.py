"""Decide whether a read comes from an enrolled phone."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest
from fedcaptor.common.catalogue.requests import SKEW_SECONDS, genuine, proof_in


@dataclass(frozen=True)
class Access:
    """Let in reads that a key in `enrolled` signed within `SKEW_SECONDS` of `clock` (seconds since 1970)."""

    enrolled: Container[str]
    clock: Callable[[], float]

    def refusal(self, request: ReadRequest, sent: Mapping[str, str | bytes]) -> str | None:
        """Say why a read is refused, for the log alone; None where it is let in. The dear check comes last."""
        proof = proof_in(sent)
        if proof is None:
            return "no key, time and signature came with it"
        public, at, signature = proof
        if public not in self.enrolled:
            return "its key is not enrolled"
        ahead = at - self.clock()
        if abs(ahead) > SKEW_SECONDS:
            return f"the phone's clock is {ahead:+.0f} seconds ahead of this one, {SKEW_SECONDS} at most are let in"
        asked = request.resource_name, request.read_offset, request.read_limit
        return None if genuine(public, signature, *asked, at) else "its signature is of another request or key"
