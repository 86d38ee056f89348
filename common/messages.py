"""Headers of the messages between server and phone, and the tensors that each may carry.

Every field is bounded and unknown fields are refused. A change of meaning raises `VERSION`.
"""

import hashlib
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

VERSION: Literal[3] = 3
MAX_CLUSTERS = 32
MAX_PLANS = MAX_CLUSTERS * MAX_TIERS
MAX_PHONES = 10_000_000

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "malformed": "a record, header or field is not what the schema says",
        "oversized": "a header, tensor or message is above its bound",
        "nan": "a tensor holds a value that is not finite",
        "wrong_kind": "another message than the expected one",
        "wrong_version": "another version of this schema",
        "wrong_run": "of another run",
        "wrong_round": "of another round",
        "wrong_digest": "of another sum, plan, submodel or base model",
        "replayed": "a reply to another request, or a second reply to this one",
        "unexpected_tensor": "a tensor that does not belong to the message",
        "missing_tensor": "a tensor that the message needs is not there",
        "wrong_dtype": "a tensor of another type",
        "wrong_shape": "a tensor whose shape does not fit its bytes or the model",
        "unknown_node": "the sender was not asked",
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
    """What a named tensor may be. A name that ends in `.*` stands for numbered tensors: `plan.0`, `plan.1`."""

    dtypes: tuple[str, ...]
    max_elements: int
    required: bool = False


Rules = Mapping[str, TensorRule]


def _rules(**rules: TensorRule) -> Rules:
    return MappingProxyType({name.replace("__each", ".*"): rule for name, rule in rules.items()})


class Body(BaseModel):
    """Base of all parts of a header: frozen, strict, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Header(Body):
    """Base of all headers; `TENSORS` names what may travel with it."""

    TENSORS: ClassVar[Rules] = _rules()

    version: Literal[3] = Field(VERSION, description="of this schema")
    run: Digest = Field(description="names the run: configuration, network, weights, phones")
    round: Annotated[int, Field(ge=0, le=1_000_000, description="counts from 1")]
    request: Annotated[str, Field(pattern=r"^[0-9a-f]{32,64}$", description="the same for the same question")]

    @property
    def group(self) -> str:
        """Names messages that belong together."""
        return f"{self.round}/{self.request[:16]}"


class SumFields(Body):
    """The fields of a `SumSpec` on the wire; `spec()` applies its privacy checks."""

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
        """The wire form of `spec`."""
        return cls(**{name: getattr(spec, name) for name in cls.model_fields})

    def spec(self) -> SumSpec:
        """The checked value; raises PrivacyError when the sum is not safe."""
        return SumSpec(**self.model_dump())


class SumRequest(Header):
    """Server to phone: add your vector to one plain sum, which shows it to the server.

    `centroids` [K, classes]: usage and outcome sums hold a block per cluster; a usage sum without them asks for class
    co-occurrence. `pool` [F]: cluster of each filter, for a sum of scores.
    """

    TENSORS: ClassVar[Rules] = _rules(
        centroids=TensorRule(("float32",), 1 << 22),
        pool=TensorRule(("int32",), 1 << 22),
    )

    message: Literal["sum_request"] = "sum_request"
    kind: Kind
    sum: SumFields


class SumReply(Header):
    """Phone to server: the encoded vector, with the phone's share of the noise."""

    TENSORS: ClassVar[Rules] = _rules(values=TensorRule(("uint32",), MAX_LENGTH, required=True))

    message: Literal["sum_reply"] = "sum_reply"
    kind: Kind
    sum_digest: Digest

    @classmethod
    def to(cls, request: SumRequest) -> Self:
        """The header that answers `request`."""
        digest = request.sum.spec().digest
        return cls(run=request.run, round=request.round, request=request.request, kind=request.kind, sum_digest=digest)


class MaskedRequest(Header):
    """Server to phone: the next of six steps of one masked sum.

    `secure`: the step's message to this very phone, laid out in `common/secure/messages.py`. Step 3 brings what the
    vector depends on, `centroids` and `pool` as in `sum_request`, by the digest that every step names. All but `step`
    and tensors is the same in all steps, and all keys and signatures are bound to it.
    """

    TENSORS: ClassVar[Rules] = _rules(
        secure=TensorRule(("uint8",), 1 << 20, required=True),
        centroids=TensorRule(("float32",), 1 << 22),
        pool=TensorRule(("int32",), 1 << 22),
    )

    message: Literal["masked_request"] = "masked_request"
    kind: Kind
    sum: SumFields
    attempt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="a number used once: another sum of its own")]
    step: Annotated[int, Field(ge=0, lt=STEPS, description="counts from 0")] = 0
    tensors: Digest = Field(description="of `centroids` and `pool`")
    dropout: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False, description="share of phones that may be lost")]
    corrupted: Annotated[
        float, Field(ge=0, le=0.5, allow_inf_nan=False, description="share that may side with the server")
    ]

    @property
    def group(self) -> str:
        return f"{super().group}/{self.attempt[-16:]}/{self.step}"

    def terms(self) -> Terms:
        """What phone and server must agree on. Raises PrivacyError on values that no masked sum can have."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"step"}).encode()).hexdigest()
        return Terms.of(self.sum.spec(), digest, self.dropout, self.corrupted)

    def question(self, tensors: Mapping[str, NDArray[Any]]) -> SumRequest:
        """The request of the plain sum that this one hides. Raises WireError on other tensors than were announced."""
        if digest_of({name: tensors[name] for name in tensors.keys() & SumRequest.TENSORS.keys()}) != self.tensors:
            raise WireError("wrong_digest", "centroids or pool are not those that the sum was announced with")
        return SumRequest(run=self.run, round=self.round, request=self.request, kind=self.kind, sum=self.sum)


class MaskedReply(Header):
    """Phone to server: its message of a step; in step 3 it holds the masked vector."""

    TENSORS: ClassVar[Rules] = _rules(secure=TensorRule(("uint8",), 4 * MAX_LENGTH + (1 << 16), required=True))

    message: Literal["masked_reply"] = "masked_reply"
    step: Annotated[int, Field(ge=0, lt=STEPS)]

    @classmethod
    def to(cls, request: MaskedRequest) -> Self:
        """The header that answers `request`."""
        return cls(run=request.run, round=request.round, request=request.request, step=request.step)


class LocalRequest(Header):
    """Server to phone: an answer that is private by itself, to be seen alone. No masks, no cohort.

    A bit for each of the `classes`·(`classes` + 1) / 2 unordered pairs: it is one with probability `present` where the
    phone drew the pair from its usage, and `absent` elsewhere. ε is what these two come to.
    """

    message: Literal["local_request"] = "local_request"
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    present: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    absent: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]

    def spec(self) -> LocalSpec:
        """The checked value; raises PrivacyError when the answer would protect nothing."""
        return LocalSpec(self.classes, self.present, self.absent)


class LocalReply(Header):
    """Phone to server: its bits, drawn once and sent again to whoever asks. `answer`: packed, first bit highest."""

    TENSORS: ClassVar[Rules] = _rules(
        answer=TensorRule(("uint8",), MAX_CLASSES * (MAX_CLASSES + 1) // 16, required=True)
    )

    message: Literal["local_reply"] = "local_reply"

    @classmethod
    def to(cls, request: LocalRequest) -> Self:
        """The header that answers `request`."""
        return cls(run=request.run, round=request.round, request=request.request)


class DeliverRequest(Header):
    """Server to phone. `plan`: the plans of all clusters; `choose`: name the nearest centroid; `submodel`: the file.

    `reference` [R, H, W, C] with `reference_labels` [R]: the server's own images. `preference` [F, classes]: which
    filters serve which classes. `plan.n`: kept channels of cluster n, packed bits over all groups. `submodel.n`:
    safetensors bytes, padded to a size bucket by white space in their header. `digests`: of each cluster's plan, of
    plan and file together where the file is sent. With `tiers` (names of all device tiers) n is cluster · number of
    tiers + tier, and `clusters` holds these numbers.
    """

    TENSORS: ClassVar[Rules] = _rules(
        centroids=TensorRule(("float32",), 1 << 22),
        preference=TensorRule(("float32",), 1 << 24),
        reference=TensorRule(("uint8",), 1 << 28),
        reference_labels=TensorRule(("int32",), 1 << 20),
        plan__each=TensorRule(("uint8",), 1 << 22),
        submodel__each=TensorRule(("uint8",), 1 << 29),
    )

    message: Literal["deliver_request"] = "deliver_request"
    mode: Literal["plan", "choose", "submodel"]
    weights: Digest = Field(description="of the base model's weights: a phone with others refuses the delivery")
    clusters: Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_PLANS)], ...], Field(max_length=MAX_PLANS)]
    digests: Annotated[tuple[Digest, ...], Field(max_length=MAX_PLANS)]
    tiers: Annotated[tuple[TierName, ...], Field(max_length=MAX_TIERS)] = ()

    @model_validator(mode="after")
    def _one_digest_each(self) -> Self:
        if len(self.clusters) != len(self.digests) or len(set(self.clusters)) != len(self.clusters):
            raise ValueError("clusters must differ and have one digest each")
        return self


class DeliverReply(Header):
    """Phone to server: whether the delivery arrived whole. `cluster` answers `choose` alone: the leak of that mode."""

    message: Literal["deliver_reply"] = "deliver_reply"
    accepted: bool
    cluster: Annotated[int, Field(ge=0, lt=MAX_CLUSTERS)] | None = None


def digest_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) of named tensors, their types and shapes."""
    return _with_tensors(hashlib.sha256(), tensors)


def request_digest(request: SumRequest | DeliverRequest, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hex) of the whole request: a request that differs in anything is another one."""
    asked = {name: tensors[name] for name in tensors.keys() & request.TENSORS.keys()}
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
