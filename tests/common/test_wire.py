"""Packing and unpacking of messages: what is sent arrives, and every violation has its reason code."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save

from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import (
    REASONS,
    DeliverReply,
    DeliverRequest,
    MaskedReply,
    MaskedRequest,
    SumFields,
    SumReply,
    SumRequest,
    check_answers,
    digest_of,
)
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.wire import HEADER, INLINE, STYPE, TENSORS, Limits, pack, unpack

RUN, ID = "a" * 64, "b" * 32
SPEC = SumSpec("usage", 8, clip=2.0, scale=1024.0, noise_multiplier=1.0, cohort=50, min_survivors=20, min_cohort=20)
REQUEST = SumRequest(run=RUN, round=3, request=ID, kind="usage", sum=SumFields.of(SPEC))
REPLY = SumReply.to(REQUEST)
VALUES = np.arange(8, dtype=np.uint32)
MASKED = MaskedRequest(
    run=RUN,
    round=3,
    request=ID,
    kind="usage",
    sum=SumFields.of(SPEC),
    attempt="e" * 32,
    tensors=digest_of({}),
    dropout=0.1,
    corrupted=0.05,
)
BYTES = np.arange(100, dtype=np.uint8)
DELIVER = DeliverRequest(
    run=RUN, round=1, request=ID, mode="plan", weights="e" * 64, clusters=(0, 5), digests=("c" * 64, "d" * 64)
)
IN_ARRAYS = Limits(inline_bytes=0)


def through_bytes(record):
    proto = recorddict_to_proto(record)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def refused(record, expected=SumReply, limits=None):
    with pytest.raises(WireError) as caught:
        unpack(record, expected, limits or Limits())
    assert caught.value.reason in REASONS
    return caught.value.reason


def with_array(array, name="values"):
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    record[TENSORS] = ArrayRecord({name: array})
    return record


def with_header(**changes):
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    record[HEADER] = ConfigRecord({"json": json.dumps({**json.loads(REPLY.model_dump_json()), **changes})})
    return record


@pytest.mark.parametrize("limits", [Limits(), IN_ARRAYS])
def test_round_trip_of_every_message(limits):
    plan = np.arange(6, dtype=np.uint8)
    centroids = np.arange(6, dtype=np.float32).reshape(2, 3).T
    done = DeliverReply(run=RUN, round=1, request=ID, accepted=True)
    sent = [
        (REQUEST, {"centroids": centroids}),
        (REPLY, {"values": VALUES}),
        (DELIVER, {"plan.0": plan, "plan.5": plan[::2], "centroids": centroids}),
        (done, {}),
        (MASKED, {"secure": BYTES, "centroids": centroids}),
        (MaskedReply.to(MASKED), {"secure": BYTES}),
    ]
    for header, tensors in sent:
        got, arrays = unpack(through_bytes(pack(header, tensors, limits)), type(header))
        assert got == header
        assert set(arrays) == set(tensors)
        for name, value in tensors.items():
            np.testing.assert_array_equal(arrays[name], value)
            assert arrays[name].dtype == value.dtype
            assert not arrays[name].flags.writeable
    assert REQUEST.sum.spec() == SPEC


@given(shape=st.lists(st.integers(0, 5), max_size=4), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_any_shape_round_trips(shape, seed):
    value = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    _, arrays = unpack(through_bytes(pack(DELIVER, {"centroids": np.asarray(value)})), DeliverRequest)
    assert arrays["centroids"].shape == tuple(shape)
    np.testing.assert_array_equal(arrays["centroids"], value)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (Array("uint32", (8,), STYPE, bytes(31)), "wrong_shape"),
        (Array("uint32", (-8,), STYPE, bytes(32)), "wrong_shape"),
        (Array("uint32", (1,) * 9, STYPE, bytes(4)), "wrong_shape"),
        (Array("uint32", (1 << 40, 1 << 40), STYPE, bytes(32)), "oversized"),
        (Array("uint32", (0, 1 << 62), STYPE, b""), "oversized"),
        (Array("float32", (8,), STYPE, bytes(32)), "wrong_dtype"),
        (Array("object", (8,), STYPE, bytes(64)), "wrong_dtype"),
        (Array("uint32", (8,), "numpy.ndarray", bytes(32)), "malformed"),
    ],
)
def test_lying_tensors_are_refused(array, reason):
    assert refused(with_array(array)) == reason


@pytest.mark.parametrize("name", ["other", "values.0", "", "../x", "plan.0", "x" * 5000])
def test_unexpected_tensors_are_refused(name):
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    array = Array("uint32", (8,), STYPE, bytes(32))
    record[TENSORS] = ArrayRecord({"values": array, name: array})
    assert refused(record) == "unexpected_tensor"


def test_missing_tensor_and_limits():
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    assert refused(record, limits=Limits(tensor_bytes=31)) == "oversized"
    assert refused(record, limits=Limits(tensors=0)) == "oversized"
    assert refused(record, limits=Limits(header_bytes=10)) == "oversized"
    wide = RecordDict({**record, HEADER: ConfigRecord({"json": "€" * 10})})
    assert refused(wide, limits=Limits(header_bytes=29)) == "oversized"
    assert refused(wide, limits=Limits(header_bytes=30)) == "malformed"
    record[TENSORS] = ArrayRecord({})
    assert refused(record) == "missing_tensor"


def test_the_headers_bound_is_of_bytes():
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    record[HEADER] = ConfigRecord({"json": "é" * 60})
    assert refused(record, limits=Limits(header_bytes=119)) == "oversized"
    assert refused(record, limits=Limits(header_bytes=120)) == "malformed"


def with_inline(content):
    return RecordDict({HEADER: ConfigRecord({"json": REPLY.model_dump_json(), INLINE: content})})


def test_small_tensors_are_beside_the_header():
    """Each record, array and part of one is a request of its own to the SuperLink."""
    record = pack(REPLY, {"values": VALUES})
    assert set(record) == {HEADER}
    size = len(record[HEADER][INLINE])
    assert set(pack(REPLY, {"values": VALUES}, Limits(inline_bytes=size))) == {HEADER}
    assert set(pack(REPLY, {"values": VALUES}, Limits(inline_bytes=size - 1))) == {HEADER, TENSORS}
    assert refused(record, limits=Limits(inline_bytes=size - 1)) == "oversized"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "missing_tensor"),
        ({"values": VALUES, "other": VALUES}, "unexpected_tensor"),
        ({"values": VALUES, "x" * 5000: VALUES}, "unexpected_tensor"),
        ({"values": VALUES.astype(np.float32)}, "wrong_dtype"),
        ({"values": VALUES.astype(np.float16)}, "wrong_dtype"),
        ({"values": VALUES.reshape((1,) * 8 + (8,))}, "wrong_shape"),
    ],
)
def test_inline_tensors_that_break_the_schema_are_refused(tensors, reason):
    assert refused(with_inline(save(tensors))) == reason


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, save({"values": VALUES})[:-1], "text", 1])
def test_bytes_that_are_no_safetensors_are_refused(content):
    assert refused(with_inline(content)) == "malformed"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    value = np.array([1, bad], dtype="<f4")
    with pytest.raises(WireError, match="nan"):
        pack(DELIVER, {"centroids": value})
    record = pack(DELIVER, {}, IN_ARRAYS)
    record[TENSORS] = ArrayRecord({"centroids": Array("float32", (2,), STYPE, value.tobytes())})
    assert refused(record, DeliverRequest) == "nan"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 1}, "wrong_version"),
        ({"message": "sum_request"}, "wrong_kind"),
        ({"round": -1}, "malformed"),
        ({"round": True}, "malformed"),
        ({"round": "3"}, "malformed"),
        ({"run": "A" * 64}, "malformed"),
        ({"kind": "secret"}, "malformed"),
        ({"extra": 1}, "malformed"),
    ],
)
def test_bad_headers_are_refused(changes, reason):
    assert refused(with_header(**changes)) == reason


@pytest.mark.parametrize("text", ["", "null", "[" * 60_000, "{", '{"round": NaN}', "[]"])
def test_texts_that_are_no_header_are_refused(text):
    record = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    record[HEADER] = ConfigRecord({"json": text})
    assert refused(record) == "malformed"


def test_records_of_another_form_are_refused():
    good = pack(REPLY, {"values": VALUES}, IN_ARRAYS)
    assert refused(RecordDict()) == "malformed"
    assert refused(RecordDict({HEADER: good[HEADER]})) == "malformed"
    assert refused(RecordDict({HEADER: good[TENSORS], TENSORS: good[HEADER]})) == "malformed"
    assert refused(RecordDict({HEADER: good[HEADER], TENSORS: good[HEADER]})) == "malformed"
    assert refused(RecordDict({HEADER: ConfigRecord({"json": 1}), TENSORS: good[TENSORS]})) == "malformed"


def test_errors_do_not_repeat_what_the_sender_chose():
    with pytest.raises(WireError) as caught:
        unpack(with_header(evil_marker="evil_marker"), SumReply)
    assert "evil_marker" not in str(caught.value)


def test_headers_are_frozen_and_clusters_match_digests():
    with pytest.raises(ValidationError):
        REPLY.round = 4
    with pytest.raises(ValidationError):
        DeliverRequest(
            run=RUN, round=1, request=ID, mode="plan", weights="e" * 64, clusters=(0, 0), digests=("c" * 64, "d" * 64)
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"run": "f" * 64}, "wrong_run"),
        ({"round": 4}, "wrong_round"),
        ({"request": "f" * 32}, "replayed"),
        ({"kind": "scores"}, "wrong_kind"),
        ({"sum_digest": "f" * 64}, "wrong_digest"),
    ],
)
def test_a_reply_must_answer_its_request(changes, reason):
    reply = REPLY.model_copy(update=changes)
    if reason is None:
        check_answers(REQUEST, reply)
    else:
        with pytest.raises(WireError) as caught:
            check_answers(REQUEST, reply)
        assert caught.value.reason == reason


def test_all_but_the_step_names_a_masked_sum():
    other = {
        "run": "b" * 64,
        "round": 4,
        "request": "c" * 32,
        "kind": "scores",
        "sum": SumFields.of(replace(SPEC, scale=1000.0)),
        "attempt": "f" * 32,
        "tensors": digest_of({"pool": BYTES}),
        "dropout": 0.2,
        "corrupted": 0.1,
    }
    assert other.keys() | {"version", "message", "step"} == set(MaskedRequest.model_fields)
    bindings = {MASKED.model_copy(update={name: value}).terms().binding for name, value in other.items()}
    assert len(bindings | {MASKED.terms().binding}) == len(other) + 1
    later = MASKED.model_copy(update={"step": 5})
    assert later.terms() == MASKED.terms()
    with pytest.raises(WireError, match="of step 0, not 5"):
        check_answers(later, MaskedReply.to(MASKED))


def test_a_masked_request_stands_for_one_question():
    pool = {"pool": np.arange(3, dtype=np.int32)}
    request = MASKED.model_copy(update={"tensors": digest_of(pool)})
    assert request.question({**pool, "secure": BYTES}) == REQUEST
    for wrong in ({}, {"pool": pool["pool"][::-1]}, {**pool, "centroids": np.eye(2, dtype=np.float32)}):
        with pytest.raises(WireError, match="wrong_digest"):
            request.question(wrong)
