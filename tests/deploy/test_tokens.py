"""A token lets one phone in, once, in time, with a key of its own; all others learn nothing."""

from __future__ import annotations

import logging
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from typer.testing import CliRunner

from benchmarks.deployment import free_port
from fedcaptor.cli.main import app
from fedcaptor.client.enrol import enrol
from fedcaptor.common.catalogue.requests import public_text
from fedcaptor.common.config import load_config
from fedcaptor.common.enrolment.enrolment_pb2 import EnrolRequest
from fedcaptor.common.enrolment.proof import digest_of, is_proven, request_of
from fedcaptor.common.errors import ConfigError, LinkError
from fedcaptor.deploy.enrolment import revoke
from fedcaptor.deploy.enrolment_service import Enrolment, serving
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import is_listened_on
from fedcaptor.deploy.render import render
from fedcaptor.deploy.tokens import make_token
from tests.programs import program
from tests.waiting import until

pytestmark = pytest.mark.slow

KEYS = [generate_private_key(SECP384R1()) for _ in range(6)]
DAY = 86_400.0


@pytest.fixture
def open_one(deployment: Deployment) -> Deployment:
    """A deployment in which phones may enrol themselves, with ports of its own."""
    ports = [f"deployment.{name}={free_port()}" for name in ("port", "superlink_port", "enrolment_port")]
    return Deployment(deployment.root, load_config(deployment.description, ["deployment.enrolment=true", *ports]))


def test_a_token_lets_one_phone_in_and_is_known_by_its_hash_alone(open_one: Deployment) -> None:
    token = make_token(open_one, "tablet", 1.0)
    files = [path for path in open_one.root.rglob("*") if path.is_file()]
    assert not [path for path in files if token in path.name or token.encode() in path.read_bytes()]
    service = Enrolment(open_one)
    assert service.refusal(request_of(KEYS[0], token)) is None
    assert open_one.enrolled_keys()["tablet"].split()[1].decode() == public_text(KEYS[0].public_key())
    assert open_one.catalogue_keys.read_bytes().count(b"\n") == 3
    assert service.refusal(request_of(KEYS[0], token)) is None  # its reply was lost: nothing changes
    assert service.refusal(request_of(KEYS[1], token)) == "the token of tablet is spent"
    assert len(open_one.enrolled_keys()) == 3
    revoke(open_one, "tablet")
    assert service.refusal(request_of(KEYS[0], token)) == "the token of tablet is spent"
    assert "tablet" not in open_one.enrolled_keys()


def test_wrong_and_expired_tokens_and_keys_of_others_let_nobody_in(open_one: Deployment) -> None:
    now = [1000 * DAY]
    token = make_token(open_one, "tablet", 1.0, lambda: now[0])
    service, before = Enrolment(open_one, lambda: now[0]), open_one.enrolled_keys()
    good, other = request_of(KEYS[0], token), request_of(KEYS[1], token)
    attempts = {
        "what it sent is no token": [EnrolRequest(), request_of(KEYS[0], token + "=")],
        "its token was never given": [request_of(KEYS[0], token[::-1])],
        "the token of tablet came with a key that its sender does not have": [
            EnrolRequest(token=token, public_key=good.public_key, signature=other.signature),
            EnrolRequest(token=token, public_key=good.public_key),
            EnrolRequest(token=token, public_key="ssh-rsa", signature=good.signature),
        ],
    }
    for reason, requests in attempts.items():
        for request in requests:
            assert service.refusal(request) == reason
    known = next(iter(before.values())).split()[1].decode()
    assert not is_proven(EnrolRequest(token=token, public_key=known, signature=good.signature))
    now[0] += DAY
    assert service.refusal(good) == "the token of tablet has expired"
    assert open_one.enrolled_keys() == before
    now[0] -= 1  # all that did the token no harm
    assert service.refusal(good) is None


def test_of_many_at_once_one_is_let_in(open_one: Deployment) -> None:
    token, service = make_token(open_one, "tablet", 1.0), Enrolment(open_one)
    with ThreadPoolExecutor(len(KEYS)) as pool:
        found = list(pool.map(lambda key: service.refusal(request_of(key, token)), KEYS))
    assert found.count(None) == 1
    winner = KEYS[found.index(None)]
    assert open_one.enrolled_keys()["tablet"].split()[1].decode() == public_text(winner.public_key())
    assert len(open_one.enrolled_keys()) == 3


def test_a_token_is_for_a_new_phone_and_another_one_takes_its_place(open_one: Deployment) -> None:
    first, second = (make_token(open_one, "tablet", 1.0) for _ in range(2))
    service = Enrolment(open_one)
    assert service.refusal(request_of(KEYS[0], first)) is not None
    assert service.refusal(request_of(KEYS[0], second)) is None
    for name, text in (("tablet", "enrolled already"), ("../up", "must be letters")):
        with pytest.raises(ConfigError, match=text):
            make_token(open_one, name, 1.0)
    third = make_token(open_one, "another", 1.0)
    assert service.refusal(request_of(KEYS[0], third)) == "the token of another came with the key of tablet"
    assert service.refusal(request_of(KEYS[1], third)) is None


def test_without_the_setting_there_are_no_tokens_and_the_front_passes_none(deployment: Deployment) -> None:
    with pytest.raises(ConfigError, match=r"deployment\.enrolment is false"):
        make_token(deployment, "tablet", 1.0)
    assert "Enrolment" not in (deployment.services / "nginx.conf").read_text()


def test_a_phone_enrols_itself_through_the_front(open_one: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    render(open_one)
    token, settings = make_token(open_one, "tablet", 1.0), open_one.settings
    phone = Path(shutil.copytree(open_one.phones / "tablet", open_one.root.parent / "tablet"))
    config = phone / "phone.toml"
    command = [program("nginx"), "-c", open_one.services / "nginx.conf", "-e", open_one.logs / "front.log"]
    with (
        caplog.at_level(logging.INFO),
        serving(Enrolment(open_one), settings.enrolment_port),
        subprocess.Popen(command) as process,
    ):
        try:
            assert until(lambda: is_listened_on(settings.port), 20)
            done = CliRunner().invoke(app, ["phone", "enrol", "--config", str(config), "--token", token])
            assert done.exit_code == 0, done.output
            with pytest.raises(LinkError, match=r"UNAUTHENTICATED \(refused\): the token is wrong, spent or"):
                enrol(config, token[::-1])
        finally:
            process.terminate()
    assert open_one.enrolled_keys()["tablet"].split()[:2] == (phone / "node.key.pub").read_bytes().split()
    assert (phone / "node.key").stat().st_mode & 0o077 == 0
    assert "tablet is enrolled" in caplog.text
    assert not any(secret in caplog.text for secret in (token, token[::-1], digest_of(token)))
