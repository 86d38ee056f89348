"""Define the headers of the messages between server and phone, and the tensors that each may carry.

Every field is bounded and unknown fields are refused. A change of meaning raises `VERSION`.
"""

import hashlib
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedcaptor.common.config import MAX_TIERS, TIER_NAME
from fedcaptor.common.errors import WireError
from fedcaptor.common.privacy.local import MAX_CLASSES, LocalSpec
from fedcaptor.common.privacy.sums import MAX_LENGTH, SumSpec
from fedcaptor.common.secure.messages import STEPS
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.statistics import kinds
from fedcaptor.common.statistics.domain import MOST

VERSION: Literal[5] = 5
MAX_CLUSTERS = 32
MAX_LOOKS = MOST
MAX_PLANS = MAX_CLUSTERS * MAX_LOOKS * MAX_TIERS
MAX_PHONES = 10_000_000

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "malformed": "a record, header or field is not what the schema says",
        "oversized": "a header, tensor or message is above its bound",
        "nan": "a tensor holds a value that is not finite",
        "wrong_kind": "the message is of another kind than the expected one",
        "wrong_version": "the message follows another version of this schema",
        "wrong_run": "the message belongs to another run",
        "wrong_round": "the message belongs to another round",
        "wrong_digest": "the message is for another sum, plan or submodel",
        "wrong_weights": "the delivery is for a base model with other weights than the phone's",
        "replayed": "the reply answers another request, or is a second one to this request",
        "unexpected_tensor": "the message holds a tensor that does not belong to it",
        "missing_tensor": "the message lacks a tensor that it needs",
        "wrong_dtype": "a tensor has another type than its rule allows",
        "wrong_shape": "a tensor has a shape that does not fit its bytes or the model",
        "unknown_node": "the sender was not asked",
        "unsigned": "a delivery is not signed by the phone's operator",
    }
)
"""Why a message is refused, by the code that counts it."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=MAX_PHONES)]
Positive = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]
TierName = Annotated[str, Field(pattern=TIER_NAME)]


def _known(kind: str) -> str:
    if kind not in kinds():
        raise ValueError(f"kind must be one of {', '.join(kinds())}")
    return kind


Kind = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(kinds())})]
"""A kind of sum; `fedcaptor.common.statistics` has them."""


@dataclass(frozen=True)
class TensorRule:
    """Bound a named tensor. A name that ends in `.*` stands for numbered tensors: `plan.0`, `plan.1`."""

    dtypes: tuple[str, ...]
    max_elements: int
    required: bool = False


Rules = Mapping[str, TensorRule]


def rule_of(name: str, rules: Rules) -> TensorRule | None:
    """Return the rule of a tensor, which may be numbered; None where none allows it."""
    return rules.get(name) or rules.get(re.sub(r"\.[0-9]+$", ".*", name))


def _rules(**rules: TensorRule) -> Rules:
    return MappingProxyType({name.replace("__each", ".*"): rule for name, rule in rules.items()})


class Body(BaseModel):
    """Base of all parts of a header: they are frozen and strict, and refuse unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Header(Body):
    """Base of all headers; `TENSORS` names the tensors that may travel with one."""

    TENSORS: ClassVar[Rules] = _rules()

    version: Literal[5] = Field(VERSION, description="version of this schema")
    run: Digest = Field(description="names the run: configuration, network, weights, phones")
    round: Annotated[int, Field(ge=0, le=1_000_000, description="counts from 1")]
    request: Annotated[
        str, Field(pattern=r"^[0-9a-f]{32,64}$", description="names a question; asking again repeats it")
    ]

    @property
    def group(self) -> str:
        """Return a name that messages which belong together share."""
        return f"{self.round}/{self.request[:16]}"


class SumFields(Body):
    """Carries the fields of a `SumSpec`; `spec()` applies its privacy checks."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
    length: Annotated[int, Field(ge=1, le=MAX_LENGTH)]
    clip: Positive
    scale: Positive
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    cohort: Count
    min_survivors: Count
    min_cohort: Count
    bits: Annotated[int, Field(ge=8, le=32)] = 32
    small_cohorts: bool = False
    rotated: bool = False

    @classmethod
    def of(cls, spec: SumSpec) -> Self:
        """Make the wire form of `spec`."""
        return cls(**{name: getattr(spec, name) for name in cls.model_fields})

    def spec(self) -> SumSpec:
        """Return the checked value; raises PrivacyError when the sum is not safe."""
        return SumSpec(**self.model_dump())


class SumRequest(Header):
    """The server asks a phone to add its vector to one plain sum, in which the server sees each vector.

    `centroids` [K, classes]: usage and outcome sums hold a block for each cluster; a usage sum without them asks for
    class co-occurrence. `pool` [F]: cluster of each filter, for a sum of scores. `look_source` [n]: the look of the
    server's images, from which sums of looks count; `looks` [L, n]: those that phones find themselves in. `expected`
    [L, m]: the batch norms' moments that the server expects of each look, from which sums of moments count.
    """

    TENSORS: ClassVar[Rules] = _rules(
        coarse=TensorRule(("int32",), 1 << 16),
        centroids=TensorRule(("float32",), 1 << 22),
        topics=TensorRule(("float32",), 1 << 22),
        pool=TensorRule(("int32",), 1 << 22),
        look_source=TensorRule(("float32",), 1 << 8),
        looks=TensorRule(("float32",), 1 << 12),
        expected=TensorRule(("float32",), 1 << 22),
    )

    message: Literal["sum_request"] = "sum_request"
    kind: Kind
    sum: SumFields


class SumReply(Header):
    """The phone sends its encoded vector, with its share of the noise."""

    TENSORS: ClassVar[Rules] = _rules(values=TensorRule(("uint32",), MAX_LENGTH, required=True))

    message: Literal["sum_reply"] = "sum_reply"
    kind: Kind
    sum_digest: Digest

    @classmethod
    def to(cls, request: SumRequest) -> Self:
        """Make the header that answers `request`."""
        digest = request.sum.spec().digest
        return cls(run=request.run, round=request.round, request=request.request, kind=request.kind, sum_digest=digest)


class MaskedRequest(Header):
    """The server asks a phone for the next of the six steps of one masked sum.

    `secure`: the step's message to this very phone, laid out in `common/secure/messages.py`. Step 3 brings what the
    vector depends on, all other tensors of a `sum_request`; every step names their digest. Only `step` and the
    tensors differ between steps: keys and signatures are bound to all the rest.
    """

    TENSORS: ClassVar[Rules] = _rules(
        secure=TensorRule(("uint8",), 1 << 20, required=True),
        coarse=TensorRule(("int32",), 1 << 16),
        centroids=TensorRule(("float32",), 1 << 22),
        topics=TensorRule(("float32",), 1 << 22),
        pool=TensorRule(("int32",), 1 << 22),
        look_source=TensorRule(("float32",), 1 << 8),
        looks=TensorRule(("float32",), 1 << 12),
        expected=TensorRule(("float32",), 1 << 22),
    )

    message: Literal["masked_request"] = "masked_request"
    kind: Kind
    sum: SumFields
    attempt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="used once: each try is a sum of its own")]
    step: Annotated[int, Field(ge=0, lt=STEPS, description="counts from 0")] = 0
    tensors: Digest = Field(description="digest of all tensors but `secure`")
    dropout: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False, description="share of phones that may be lost")]
    corrupted: Annotated[
        float, Field(ge=0, le=0.5, allow_inf_nan=False, description="share that may side with the server")
    ]

    @property
    def group(self) -> str:
        return f"{super().group}/{self.attempt[-16:]}/{self.step}"

    def terms(self) -> Terms:
        """Return what phone and server must agree on. Raises PrivacyError on values that no masked sum can have."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"step"}).encode()).hexdigest()
        return Terms.of(self.sum.spec(), digest, self.dropout, self.corrupted)

    def question(self, tensors: Mapping[str, NDArray[Any]]) -> SumRequest:
        """Return the plain sum's request that this one stands for. Raises WireError on other tensors than announced."""
        if digest_of({name: tensors[name] for name in tensors.keys() & SumRequest.TENSORS.keys()}) != self.tensors:
            raise WireError("wrong_digest", "the tensors are not those that the sum was announced with")
        return SumRequest(run=self.run, round=self.round, request=self.request, kind=self.kind, sum=self.sum)


class MaskedReply(Header):
    """The phone sends its message of a step; in step 3 it holds the masked vector."""

    TENSORS: ClassVar[Rules] = _rules(secure=TensorRule(("uint8",), 4 * MAX_LENGTH + (1 << 16), required=True))

    message: Literal["masked_reply"] = "masked_reply"
    step: Annotated[int, Field(ge=0, lt=STEPS)]

    @classmethod
    def to(cls, request: MaskedRequest) -> Self:
        """Make the header that answers `request`."""
        return cls(run=request.run, round=request.round, request=request.request, step=request.step)


class LocalRequest(Header):
    """The server asks a phone for an answer that is private by itself and may be seen alone: no masks, no cohort.

    The answer has a bit for each of the `classes`·(`classes` + 1) / 2 unordered pairs of classes: it is one with
    probability `present` for the pair that the phone drew from its usage, and `absent` elsewhere. These two give ε.
    """

    message: Literal["local_request"] = "local_request"
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    present: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    absent: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]

    def spec(self) -> LocalSpec:
        """Return the checked value; raises PrivacyError when the answer would protect nothing."""
        return LocalSpec(self.classes, self.present, self.absent)


class LocalReply(Header):
    """The phone sends its bits, drawn once and sent again to whoever asks. `answer`: packed, first bit highest."""

    TENSORS: ClassVar[Rules] = _rules(
        answer=TensorRule(("uint8",), MAX_CLASSES * (MAX_CLASSES + 1) // 16, required=True)
    )

    message: Literal["local_reply"] = "local_reply"

    @classmethod
    def to(cls, request: LocalRequest) -> Self:
        """Make the header that answers `request`."""
        return cls(run=request.run, round=request.round, request=request.request)


class DeliverRequest(Header):
    """The server offers a phone submodels, or an adaptation of the base model, in one of four modes.

    `plan` brings the plans of all clusters; `choose` asks for the nearest centroid; `submodel` brings the file of the
    cluster that the phone chose; `adapt` brings `looks`, `look_source` and `moments` alone, before anything is asked
    that depends on the base model.

    `reference` with `reference_labels` [R]: the server's own images, side by side in the bytes of one PNG or JPEG
    picture (`common/data/mosaic.py`). `preference` [F, classes]: which filters serve which classes. `calibration`
    [classes + 1]: temperature and biases that make the base model's logits log-likelihoods. `plan.n`: kept channels of
    cluster n, packed bits over all groups. `submodel.n`: safetensors bytes, padded to a size bucket by white space in
    their header. `digests`: of each cluster's plan, or of plan and file together where the file is sent. With `tiers`
    (names of all device tiers) n is cluster · number of tiers + tier, and `clusters` holds these numbers.

    `topics` [K, classes], in place of `centroids`: an owner's usage is a mixture of them (`common/topics.py`).

    `looks` [L, n]: kinds of photos, of which a phone takes the nearest. Their `moments` [L, m] move the base model's
    batch norms (`common/domain.py`). `look_source` [n]: the look of the reference images, which the phone re-renders in
    its own. With looks `calibration` has a row for each, and clusters are counted in the first look, then in the next.

    `issued` and `signature` are left out where nobody signs. The signature (Ed25519) is of the text
    `DSSEv1 37 application/vnd.fedcaptor.delivery.v1 64 D`. D is the SHA-256 in hex of the header's JSON text without
    `signature` and, of each tensor in the order of names, name, dtype, shape as in `(2, 3)`, and bytes
    (`common/secure/delivery.py`).
    """

    TENSORS: ClassVar[Rules] = _rules(
        centroids=TensorRule(("float32",), 1 << 22),
        topics=TensorRule(("float32",), 1 << 22),
        preference=TensorRule(("float32",), 1 << 24),
        calibration=TensorRule(("float32",), ((1 << 16) + 1) * MAX_LOOKS),
        looks=TensorRule(("float32",), 1 << 12),
        look_source=TensorRule(("float32",), 1 << 8),
        moments=TensorRule(("float32",), 1 << 22),
        reference=TensorRule(("uint8",), 1 << 26),
        reference_labels=TensorRule(("int32",), 1 << 20),
        plan__each=TensorRule(("uint8",), 1 << 22),
        submodel__each=TensorRule(("uint8",), 1 << 29),
    )

    message: Literal["deliver_request"] = "deliver_request"
    mode: Literal["plan", "choose", "submodel", "adapt"]
    synthetic: bool = Field(
        False,
        exclude_if=operator.not_,
        description="the reference images are no photos: a phone's own are not to look like them",
    )
    weights: Digest = Field(description="digest of the base model's weights: a phone with others refuses the delivery")
    clusters: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_PLANS)], ...], Field(max_length=MAX_PLANS)]
    digests: Annotated[tuple[Digest, ...], Field(max_length=MAX_PLANS)]
    tiers: Annotated[tuple[TierName, ...], Field(max_length=MAX_TIERS)] = ()
    issued: Annotated[int, Field(ge=0, le=1 << 40)] = Field(
        0,
        exclude_if=operator.not_,
        description="seconds since 1970, rising from round to round: a phone takes none below its newest",
    )
    signature: Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")] = Field(
        "", exclude_if=operator.not_, description="the operator's"
    )

    @model_validator(mode="after")
    def _one_digest_each(self) -> Self:
        if len(self.clusters) != len(self.digests) or len(set(self.clusters)) != len(self.clusters):
            raise ValueError("clusters must differ and have one digest each")
        return self


class DeliverReply(Header):
    """The phone tells whether it accepts the delivery. `cluster` answers `choose` alone, and no ε protects it.

    `other_weights` is left out unless the phone refuses because its base model has other weights.
    """

    message: Literal["deliver_reply"] = "deliver_reply"
    accepted: bool
    cluster: Annotated[int, Field(ge=0, lt=MAX_CLUSTERS)] | None = None
    other_weights: bool = Field(False, exclude_if=operator.not_)


def digest_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) of named tensors, their types and shapes."""
    return _with_tensors(hashlib.sha256(), tensors)


def request_digest(request: SumRequest | DeliverRequest, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) of the whole request: one that differs in anything is another request."""
    asked = {name: tensor for name, tensor in tensors.items() if rule_of(name, request.TENSORS)}
    return _with_tensors(hashlib.sha256(request.model_dump_json().encode()), asked)


def _with_tensors(digest: Any, tensors: Mapping[str, NDArray[Any]]) -> str:
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode() + tensors[name].tobytes())
    return str(digest.hexdigest())


def check_answers(request: Header, reply: Header) -> None:
    """Raise WireError unless `reply` answers `request`: run, round, request id and, for sums, kind, digest or step."""
    if reply.run != request.run:
        raise WireError("wrong_run", "the reply belongs to another run; restart the phone's app")
    if reply.round != request.round:
        raise WireError("wrong_round", f"the reply is for round {reply.round}, not {request.round}")
    if reply.request != request.request:
        raise WireError("replayed", "the reply answers another request")
    if isinstance(request, SumRequest) != isinstance(reply, SumReply):
        raise WireError("wrong_kind", f"{type(reply).__name__} does not answer {type(request).__name__}")
    if isinstance(request, SumRequest) and isinstance(reply, SumReply):
        if reply.kind != request.kind:
            raise WireError("wrong_kind", f"the reply is a {reply.kind} sum, not {request.kind}")
        if reply.sum_digest != request.sum.spec().digest:
            raise WireError("wrong_digest", "the reply was encoded for another sum")
    if isinstance(request, MaskedRequest) and isinstance(reply, MaskedReply) and reply.step != request.step:
        raise WireError("replayed", f"the reply is of step {reply.step}, not {request.step}")
