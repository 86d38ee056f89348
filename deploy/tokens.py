"""Tokens by which phones enrol themselves: random, known here by their hash alone, for one phone and some days."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedcaptor.common.enrolment.proof import digest_of
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import replacing
from fedcaptor.deploy.enrolment import alone, require_new_name
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.phones import write_phone

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Token:
    """What is kept of a token: the name of the phone that it lets in, and until when (seconds since 1970).

    `key`: the public key that it was spent for, "" before.
    """

    name: str
    expires: float
    key: str = ""


def make_token(deployment: Deployment, name: str, days: float, clock: Callable[[], float] = time.time) -> str:
    """Return a new token for a phone of this name, in place of an earlier one, and write the phone's folder.

    Raises ConfigError for a name that is malformed or enrolled already.
    """
    if not deployment.settings.enrolment:
        raise ConfigError(
            "deployment.enrolment is false, so nobody would answer the phone: set it to true, and `deploy up`"
        )
    with alone(deployment):
        require_new_name(deployment, name)
        for path, token in _tokens(deployment):
            if token.name == name or token.expires <= clock():
                path.unlink()
        write_phone(deployment, name)
        text = secrets.token_urlsafe(32)
        _keep(deployment, text, Token(name, clock() + days * _DAY_SECONDS))
    return text


def find_token(deployment: Deployment, text: str) -> Token | None:
    """Return what is kept of a token, None where there is none."""
    path = deployment.tokens / digest_of(text)
    return Token(**json.loads(path.read_bytes())) if path.is_file() else None


def spend_token(deployment: Deployment, text: str, token: Token, key: str) -> None:
    """Note for which public key a token was spent: it serves once."""
    _keep(deployment, text, replace(token, key=key))


def _keep(deployment: Deployment, text: str, token: Token) -> None:
    path = deployment.tokens / digest_of(text)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with replacing(path, private=True, durable=True) as temporary:
        temporary.write_text(json.dumps(asdict(token)))


def _tokens(deployment: Deployment) -> Iterator[tuple[Path, Token]]:
    for path in sorted(deployment.tokens.glob("*")):
        yield path, Token(**json.loads(path.read_bytes()))
