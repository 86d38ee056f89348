"""Run one phone: what it answers and what it keeps in its folder. Nothing here knows Flower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from fedcaptor.client.background import Background, InPlace
from fedcaptor.client.cluster_naming import NamingLedger
from fedcaptor.client.folder import phone_ledger
from fedcaptor.client.issued import IssueLedger
from fedcaptor.client.ledger import Ledger
from fedcaptor.client.local_answer import LocalLedger
from fedcaptor.client.masked_sums import MaskedLedger, Side
from fedcaptor.client.reply_timing import ReplyTiming
from fedcaptor.common.arrays import Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.messages import DeliverRequest, LocalRequest, MaskedRequest, SumRequest, request_digest
from fedcaptor.common.privacy.local import Bits
from fedcaptor.common.privacy.noise import system_generator
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.common.random_streams import stream_of_digest
from fedcaptor.common.secure.delivery import verify
from fedcaptor.common.secure.messages import MASKING
from fedcaptor.common.statistics import USAGE

if TYPE_CHECKING:
    from fedcaptor.client.learner import Learner

L = TypeVar("L", bound=Ledger)


@dataclass(frozen=True, eq=False)
class Phone:
    """Answer the server's requests as one phone.

    `folder`: the phone's own storage. `learner`: called by the thread that answers where an answer needs the network.
    `seed` None: noise from the operating system's generator; a number: from a seeded one, in simulation only.
    `timing`: of replies that tell of the owner's usage. `background`: does the phone's own work, which takes longer for
    some owners than for others, outside of replies; without one, before them.
    `enrolled`: tells whether an identity is that of an enrolled phone; None: there is no register of them.
    `operator`: public key (32 bytes) of who signs deliveries; None: they need no signature.
    """

    folder: Path
    learner: Callable[[], Learner]
    config: Config
    seed: tuple[int, ...] | None = None
    durable: bool = True
    timing: ReplyTiming = field(default_factory=ReplyTiming)
    enrolled: Callable[[bytes], bool] | None = None
    background: Background | None = None
    operator: bytes | None = None

    @cached_property
    def _work(self) -> Background:
        return self.background or InPlace(self.learner)

    def answer(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.uint32]:
        """Return this phone's encoded vector; a repeated request gets equal bytes and is charged once.

        Raises PrivacyError when the phone declines.
        """
        return self.timing.reply(lambda: self._answer(request, tensors))

    def _answer(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.uint32]:
        if self.config.privacy.sums != "plain":
            raise PrivacyError("the sum is not masked: declined")
        spec = request.sum.spec()
        self._check_promises(spec)
        with self._ledger_of_sum(Ledger, spec) as ledger:
            digest = request_digest(request, tensors)
            return ledger.answer(spec, digest, lambda: self._encoded(request, tensors), request.kind)

    def masked(self, request: MaskedRequest, tensors: Tensors) -> npt.NDArray[np.uint8]:
        """Return this phone's message in one step of a masked sum; a repeated request gets equal bytes.

        The sum is charged once, when the masked vector leaves. Raises PrivacyError when the phone declines.
        """
        if request.step != MASKING:  # takes the same time for every owner
            return self._masked(request, tensors)
        return self.timing.reply(lambda: self._masked(request, tensors))

    def _masked(self, request: MaskedRequest, tensors: Tensors) -> npt.NDArray[np.uint8]:
        if self.config.privacy.sums == "local":
            raise PrivacyError("the phone answers by itself alone: declined")
        terms, spec, insisted = request.terms(), request.sum.spec(), self.config.privacy.corrupted
        self._check_promises(spec)
        if terms.corrupted < insisted:
            raise PrivacyError(f"the sum allows for {terms.corrupted} corrupted phones, must be {insisted}: declined")
        with self._ledger_of_sum(MaskedLedger, spec) as ledger:
            values: list[npt.NDArray[np.uint32]] = []
            side = Side(terms, self.folder, self.seed and (*self.seed, request.step), self.enrolled)
            secure = tensors["secure"].tobytes()
            if request.step == MASKING and not ledger.masked(terms.digest):  # before the ledger's file is locked
                ledger.require_next(spec, request.kind, side)
                self._work.wait(self.timing.patience)
                values.append(self._encoded(request.question(tensors), tensors))

            def vector() -> npt.NDArray[np.uint32]:
                if not values:
                    raise WireError("wrong_kind", "the vector is asked for under another step's number")
                return values[0]

            reply = ledger.step(spec, request.kind, side, lambda phone_sum: phone_sum.answer(secure, vector))
        if request.step == 0:
            self._work.prepare(request.kind)
        return np.frombuffer(reply, np.uint8)

    def local(self, request: LocalRequest) -> Bits:
        """Return this phone's own randomised answer, packed bits; it is charged once and sent again to whoever asks.

        Raises PrivacyError when the phone declines.
        """
        return self.timing.reply(lambda: self._local(request))

    def _local(self, request: LocalRequest) -> Bits:
        if self.config.privacy.sums != "local":
            raise PrivacyError("the answer would be seen alone: declined")
        spec = request.spec()

        def draw() -> Bits:
            learner = self._informed()  # loads the network: not where the answer is stored
            classes = learner.shipped.groups.classes
            if spec.classes != classes:
                raise WireError("wrong_shape", f"the question is over {spec.classes} classes, not {classes}")
            return spec.draw(learner.usage(request.round), self._noise(spec.digest))

        with self._ledger(LocalLedger) as ledger:
            return np.frombuffer(ledger.local(spec, draw), np.uint8)

    def deliver(self, request: DeliverRequest, tensors: Tensors) -> int | None:
        """Store what the server offers, and start to personalise. Returns the cluster when the server asks for it.

        Raises WireError when the offer does not fit this phone's base model, is not signed by its operator or older
        than another one, PrivacyError when the server asks for the cluster of a phone that was configured to slice for
        itself, or asks too often.
        """
        if request.mode == "adapt":
            self._adapt(request, tensors)
            return None
        if (request.mode == "plan") != (self.config.delivery.mode == "plan"):
            raise PrivacyError(f"delivery is by {request.mode}, must be by {self.config.delivery.mode}: declined")
        if request.mode == "choose":
            return self.timing.reply(lambda: self._named(request, tensors))
        self._require_signed(request, tensors)
        self.learner().accept(request, tensors)  # takes the same time for every owner
        self._work.personalise()
        return None

    def _adapt(self, request: DeliverRequest, tensors: Tensors) -> None:
        if not self.config.domain.enabled:
            raise PrivacyError("the base model is to be adapted, domain.enabled is false: declined")
        self._require_signed(request, tensors)
        self.learner().adapt(request, tensors)  # takes the same time for every owner

    def _named(self, request: DeliverRequest, tensors: Tensors) -> int:
        self._require_signed(request, tensors)
        with self._ledger(NamingLedger) as ledger:
            digest, most = request_digest(request, tensors), self.config.delivery.fetches
            return ledger.named(digest, most, lambda: self._informed().nearest(request, tensors))

    def _require_signed(self, request: DeliverRequest, tensors: Tensors) -> None:
        """Raise WireError unless the phone's operator, if it has one, signed the delivery, and none that is newer."""
        if self.operator is None:
            return
        digest = verify(request, tensors, self.operator)
        with self._ledger(IssueLedger) as ledger:
            ledger.require_newest(request.mode, request.issued, digest)

    def _informed(self) -> Learner:
        """Return the learner, once the day's images are recorded or patience is at its end."""
        self._work.prepare(USAGE.kind)
        self._work.wait(self.timing.patience)
        return self.learner()

    def _check_promises(self, spec: SumSpec) -> None:
        """Raise PrivacyError for a sum that breaks what this phone was configured to insist on."""
        if spec.noise_multiplier == 0 and self.config.privacy.noise:
            raise PrivacyError("the sum has no noise: declined")
        if spec.small_cohorts and not self.config.testing.small_cohorts:
            raise PrivacyError("the sum allows small cohorts: declined")
        if spec.min_cohort < self.config.privacy.min_cohort:
            raise PrivacyError(f"min_cohort is {spec.min_cohort}, must be {self.config.privacy.min_cohort}: declined")

    def _ledger(self, kind: type[L]) -> L:
        return phone_ledger(self.folder, self.config.privacy, kind, durable=self.durable)

    def _ledger_of_sum(self, kind: type[L], spec: SumSpec) -> L:
        """Open the ledger that a sum is charged to; sums without noise have one of their own.

        Raises PrivacyError for a sum without noise on a phone that is switched off: the lasting ledger has the switch.
        """
        if spec.noise_multiplier > 0 or self.seed is not None:  # a simulated phone's folder goes with its run
            return self._ledger(kind)
        with self._ledger(Ledger) as lasting:
            lasting.require_on()
        return phone_ledger(self.folder, self.config.privacy, kind, durable=self.durable, noise_free=True)

    def _encoded(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.uint32]:
        """Return the vector with this phone's share of the noise."""
        noise = self._noise(request_digest(request, tensors))
        return encode(self.learner().vector(request, tensors), request.sum.spec(), noise)

    def _noise(self, digest: str) -> np.random.Generator:
        if self.seed is None:
            return system_generator()
        return stream_of_digest(self.seed, digest)
