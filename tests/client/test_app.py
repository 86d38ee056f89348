"""What a phone's failures tell the server: one word."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Context, RecordDict

from fedcaptor.client.app import device_phone, make_app
from fedcaptor.client.device import Device
from fedcaptor.client.masked_sums import Side
from fedcaptor.common.errors import ConfigError, DataError, PrivacyError
from fedcaptor.common.messages import DeliverRequest, LocalRequest, MaskedRequest, SumFields, SumRequest, digest_of
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.secure import keys, messages
from fedcaptor.common.secure.register import sign
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.wire import pack
from fedcaptor.server.app import Settings
from fedcaptor.simulations.local_grid import LocalGrid
from fedcaptor.simulations.runner import SHIPPED
from tests.common.secure_cohort import identity, terms

RUN, REQUEST = "a" * 64, "b" * 32


class FailingPhone:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def answer(self, *_):
        raise self.error

    deliver = masked = local = answer


def requests():
    spec = SumSpec("usage", 4, 1.0, 1000.0, 0.0, cohort=2, min_survivors=2, min_cohort=2, small_cohorts=True)
    ask = SumRequest(run=RUN, round=1, request=REQUEST, kind="usage", sum=SumFields.of(spec))
    give = DeliverRequest(run=RUN, round=1, request=REQUEST, mode="plan", weights="e" * 64, clusters=(), digests=())
    step = MaskedRequest(
        **{name: getattr(ask, name) for name in ("run", "round", "request", "kind", "sum")},
        attempt="0" * 32,
        tensors=digest_of({}),
        dropout=0.1,
        corrupted=0.0,
    )
    alone = LocalRequest(run=RUN, round=1, request=REQUEST, classes=10, present=0.5, absent=0.25)
    return {
        "query.local": (alone, {}),
        "query.sum": (ask, {}),
        "query.deliver": (give, {}),
        "query.masked": (step, {"secure": np.ones(1, np.uint8)}),
    }


@pytest.mark.parametrize("kind", requests())
@pytest.mark.parametrize(
    "error",
    [
        DataError("cat_birthday.jpg cannot be read"),
        PrivacyError("budget spent"),
        OSError("/home/owner/phone.db"),
        ValueError(),
    ],
)
def test_the_server_learns_that_a_phone_declined_and_never_why(kind, error):
    seen = []
    app = make_app(lambda context: FailingPhone(error))

    def watched(message, context):
        try:
            return app(message, context)
        except Exception as raised:
            seen.append(raised)
            raise

    grid = LocalGrid(watched, 1)
    message = grid.create_message(pack(*requests()[kind]), kind, next(iter(grid.get_node_ids())), "g")
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    chain, raised = [], seen[0]
    while raised is not None:
        chain.append((type(raised), str(raised)))
        raised = raised.__context__ or raised.__cause__
    assert chain[0] == (PrivacyError, "declined")
    assert not any("birthday" in text or "owner" in text for _, text in chain)


def node_of(folder, text):
    """A node's configuration whose TOML file holds `text`."""
    (folder / "config.toml").write_text(text)
    return {
        "folder": str(folder),
        "images": str(folder),
        "weights": str(SHIPPED),
        "model": "small-cnn",
        "input-shape": "1x28x28",
        "config": str(folder / "config.toml"),
    }


def test_plain_sums_are_refused_on_devices_and_by_their_server(tmp_path):
    node = node_of(tmp_path, '[privacy]\nsums = "plain"')
    with pytest.raises(ConfigError, match=r'privacy\.sums is "plain", real phones mask theirs'):
        device_phone(Context(1, 1, node, RecordDict(), {}))
    with pytest.raises(ConfigError, match=r'privacy\.sums is "plain", real phones mask theirs'):
        Settings.of({"config": node["config"], "folder": str(tmp_path)})


def test_devices_may_answer_by_themselves(tmp_path):
    node = node_of(tmp_path, '[privacy]\nsums = "local"')
    phone = device_phone(Context(1, 1, node, RecordDict(), {}))
    assert (phone.config.privacy.sums, phone.seed) == ("local", None)
    run = {"config": node["config"], "folder": str(tmp_path), "weights": str(SHIPPED)}
    assert Settings.of(run).config.privacy.sums == "local"


def test_devices_reply_at_a_fixed_time_that_their_server_waits_for(tmp_path):
    phone = device_phone(Context(1, 1, node_of(tmp_path, "[delivery]\nanswer_seconds = 99"), RecordDict(), {}))
    assert phone.timing.seconds == 99
    node = node_of(tmp_path, "[rounds]\ndeadline = 60")
    with pytest.raises(ConfigError, match=r"answer_seconds is 60, no phone would answer within rounds\.deadline, 60"):
        Settings.of({"config": node["config"], "folder": str(tmp_path)})


def test_a_device_adds_up_with_enrolled_phones_alone(tmp_path):
    operator, enrolled = identity("operator"), keys.identity_of(identity(1))
    (tmp_path / "register").write_bytes(sign([enrolled.hex()], operator))
    settings = {"register": str(tmp_path / "register"), "operator": keys.identity_of(operator).hex()}
    node = node_of(tmp_path, "")
    known = device_phone(Context(1, 1, {**node, **settings}, RecordDict(), {})).enrolled
    assert (known(enrolled), known(bytes(32))) == (True, False)
    assert device_phone(Context(1, 1, node, RecordDict(), {})).enrolled is None
    for changed, remedy in (
        ({"operator": ""}, "give the public key that signed it"),
        ({"operator": "0" * 64}, "not signed by the operator"),
        ({"register": node["config"]}, "no register, or damaged"),
    ):
        with pytest.raises(ConfigError, match=remedy):
            device_phone(Context(1, 1, {**node, **settings, **changed}, RecordDict(), {}))
        with pytest.raises(ConfigError, match=remedy):
            Settings.of({**node, **settings, **changed})
    alone = device_phone(Context(1, 1, {**node, "operator": settings["operator"]}, RecordDict(), {}))
    assert (alone.enrolled, alone.operator) == (None, keys.identity_of(operator))
    assert Settings.of({**node, "operator": settings["operator"]}).enrolled is None
    phone = device_phone(Context(1, 1, {**node, **settings}, RecordDict(), {}))
    side = Side(terms(4), tmp_path, enrolled=phone.enrolled)
    with pytest.raises(PrivacyError, match="is not enrolled"):
        side.resume(None).answer(messages.Start().to_bytes(side.terms.binding), list)


def test_a_phone_s_file_names_the_operator_s_key(tmp_path, caplog):
    key, names = identity("operator").public_key(), ("superlink", "key", "folder", "images")
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "operator.pem").write_bytes(pem)
    lines = [f'{name} = "own"' for name in names] + [f'weights = "{SHIPPED}"', 'model = "small-cnn"']
    file = tmp_path / "phone.toml"
    file.write_text("\n".join(["[device]", *lines, "input_shape = [1, 28, 28]"]))
    with caplog.at_level("INFO"):
        assert Device.of_file(file).phone().operator is None
    assert "no operator's key is configured" in caplog.text
    file.write_text(file.read_text() + '\noperator = "operator.pem"')
    assert Device.of_file(file).phone().operator == key.public_bytes_raw()


def test_a_phone_with_other_weights_than_the_pinned_ones_does_not_start(tmp_path):
    digest = BaseModel.load(SHIPPED, "small-cnn", (1, 28, 28)).weights_digest
    node = node_of(tmp_path, f'[device]\nweights_digest = "{digest}"')
    assert Device.of(node).weights == SHIPPED
    node = node_of(tmp_path, f'[device]\nweights_digest = "{"0" * 64}"')
    with pytest.raises(ConfigError, match=f"digest {digest[:12]}, device.weights_digest is 000000000000: install"):
        Device.of(node)
