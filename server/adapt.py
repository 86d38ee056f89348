"""Adapt the base model to how phones' photos look, before phones are asked for anything that depends on it.

Looks come from private sums. The server re-renders its own labelled images in each look, and takes the batch norms'
moments from them; a further private sum corrects these, as far as it stands out of its noise. What the labelled images
do not bear out is not published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcaptor.common import domain
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Images, Indices
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.look import look_of, rendered
from fedcaptor.common.messages import DeliverRequest, digest_of
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.common.statistics import LOOK, MOMENTS
from fedcaptor.common.statistics.domain import ByLook, look_scale, moments_scale
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.looks import first_looks, next_looks
from fedcaptor.server.planning import Reference
from fedcaptor.server.record import LookRecord

if TYPE_CHECKING:
    from fedcaptor.server.flow import Flow
    from fedcaptor.server.journal import Result

MEASURED, HELD = 600, 400
"""Reference images, of all classes alike, that moments are taken from, and that judge them."""

_SURE = 2.0  # standard errors by which an adapted model must be better than the shipped one
_BETWEEN_PHONES = 0.03  # variance of a moment between phones, which their few classes make


def adapt(flow: Flow, round: int) -> Adaptation | None:
    """Return how the base model is adapted, and publish it to the phones of the round; None where it is not to be.

    It is learned in the first round, and phones that join later receive the same.
    """
    if not flow.config.domain.enabled:
        return None
    adaptation = _learned(flow) if round == 1 else flow.adaptation
    assert adaptation is not None  # every run begins with its first round, from the journal if need be
    flow.phase(round, "adapt", lambda: published(flow, round, adaptation))
    return adaptation


def _learned(flow: Flow) -> Adaptation:
    source = look_of(flow.reference.x).astype(np.float32)
    looks, phones = _looks(flow, source)
    expected = flow.phase(1, "expected", lambda: _expected(flow, source, looks))[1]["moments"]
    correction = _corrections(flow, looks, expected)
    found, stored = flow.phase(1, "adaptation", lambda: _decided(flow, source, looks, phones, expected, correction))
    adaptation = Adaptation(stored["looks"], stored["look_source"], stored["moments"])
    rows = zip(found["looks"], adaptation.moments, strict=True)
    flow.looks = tuple(LookRecord(**row, moved=bool(moments.any())) for row, moments in rows)
    return adaptation


def _looks(flow: Flow, source: Array) -> tuple[Array, Floats]:
    """Return the looks [L, n] in single precision, and about how many phones have each [L]."""
    settings, budget, scale = flow.config.domain, flow.budget, look_scale(flow.base.groups)
    found = first_looks(_drawn(flow)[0].x, flow.config.run.seed) if settings.looks > 1 else np.zeros((1, len(source)))
    phones, steps = np.zeros(len(found)), flow.steps(1, LOOK)
    for step in steps:
        sent = (source + found).astype(np.float32)
        blocks = flow.sum(step, {"look_source": source, "looks": sent}, len(sent))
        deviation = budget.spec(step, len(sent)).deviation
        floor = flow.config.privacy.min_cohort if step is steps[-1] else 0.0
        found, phones = next_looks(blocks, deviation, scale, settings.looks, floor)
    return (source + found).astype(np.float32), phones


def _expected(flow: Flow, source: Array, looks: Array) -> Result:
    """Take the moments [L, m] of the server's images, re-rendered in each look."""
    measured, size = _drawn(flow)[0], domain.length(flow.base.groups.tensors)
    moments = np.zeros((len(looks), size), np.float32)
    for number, target in enumerate(looks if size else ()):
        moments[number] = moments_on(flow.base, in_look(measured.x, source, target))
        flow.on_progress("expected", number + 1, len(looks))
    return {}, {"moments": moments}


def _corrections(flow: Flow, looks: Array, expected: Array) -> Floats:
    """Return what phones' own moments add to the expected ones [L, m]."""
    if expected.shape[1]:
        for step in flow.steps(1, MOMENTS):
            sums = flow.sum(step, {"looks": looks, "expected": expected}, len(looks))
            return corrections(sums, flow.budget.spec(step, len(looks)).deviation, flow.base.groups)
    return np.zeros(expected.shape)


def corrections(found: ByLook, deviation: float, groups: ChannelGroups) -> Floats:
    """Return the mean of phones' moments, less those expected, by look [L, m], shrunk as far as it is noise.

    Args:
        found: Noisy sums by look.
        deviation: Of the noise in an entry of a vector's sum.
        groups: Channel groups of the base model.
    """
    phones, rows = np.maximum(found.phones, 1.0), []
    for sums, count in zip(found.sums, phones, strict=True):
        noise = np.square(deviation * moments_scale(groups) / count) + _BETWEEN_PHONES / count
        rows.append(domain.shrunk(groups.tensors, sums / count, float(noise)))
    return np.array(rows)


class _Answers(NamedTuple):
    """Which of some images a model answers rightly [N]."""

    right: Array

    @classmethod
    def of(cls, base: BaseModel, images: Images, labels: Indices) -> _Answers:
        return cls(base.scores(images).argmax(1) == labels)

    def better(self, other: _Answers, errors: float) -> bool:
        """Tell whether these are better by more than so many standard errors of the paired difference."""
        gain = self.right.astype(np.float64) - other.right
        return bool(gain.mean() > errors * gain.std(ddof=1) / np.sqrt(len(gain)))


def borne_out(
    base: BaseModel, images: Images, labels: Indices, expected: Array, correction: Floats
) -> tuple[Floats, dict[str, float]]:
    """Return of the moments what labelled images, re-rendered in the look, bear out, and how they are answered.

    None of them where the expected ones [m] do not answer better than the shipped model, else these, with the
    correction [m] where it answers no worse.
    """
    shipped = _Answers.of(base, images, labels)
    kept, found = np.zeros(len(expected)), shipped
    if len(expected):
        by_look = _Answers.of(base.adapted(expected), images, labels)
        if by_look.better(shipped, _SURE):
            kept, found = expected.astype(np.float64), by_look
            both = np.clip(kept + correction, -domain.LARGEST, domain.LARGEST)
            corrected = _Answers.of(base.adapted(both), images, labels) if correction.any() else by_look
            if not by_look.better(corrected, 1.0):
                kept, found = both, corrected
    return kept, {"shipped": float(shipped.right.mean()), "adapted": float(found.right.mean())}


def _decided(flow: Flow, source: Array, looks: Array, phones: Floats, expected: Array, correction: Floats) -> Result:
    held, rows = _drawn(flow)[1], []
    moments = np.zeros(expected.shape, np.float32)
    for number, target in enumerate(looks):
        images = in_look(held.x, source, target)
        moments[number], answers = borne_out(flow.base, images, held.y, expected[number], correction[number])
        rows.append({"phones": float(phones[number]), **answers})
        flow.on_progress("adaptation", number + 1, len(looks))
    return {"looks": rows}, {"looks": looks, "look_source": source, "moments": moments}


def published(flow: Flow, round: int, adaptation: Adaptation) -> Result:
    """Send an adaptation to the phones of a round."""
    tensors, courier = adaptation.tensors, flow.courier
    request = DeliverRequest(
        run=courier.run,
        round=round,
        request=courier.request_id(str(round), "adapt", digest_of(tensors)),
        mode="adapt",
        weights=flow.base.weights_digest,
        clusters=(),
        digests=(),
        issued=flow.issued(round),
    )
    _, tally = courier.deliver(request, tensors, flow.nodes)
    return flow.tallied(round, "adapt", tally, {})


def _drawn(flow: Flow) -> tuple[Reference, Reference]:
    """Draw reference images to measure moments on, and others that judge them; of every class as many."""
    reference, rng = flow.reference, stream(flow.config.run.seed, Stream.DOMAIN)
    each = -(-(MEASURED + HELD) // max(len(np.unique(reference.y)), 1))
    chosen = rng.permutation(reference.pack(each, rng))
    part = len(chosen) * MEASURED // (MEASURED + HELD)
    measured, held = chosen[:part], chosen[part:]
    return Reference(reference.x[measured], reference.y[measured]), Reference(reference.x[held], reference.y[held])


def in_look(images: Images, source: Array, target: Array) -> Images:
    """Re-render images, of a kind whose look is `source`, in the look `target`."""
    return rendered(images, (target - source).astype(np.float64))
