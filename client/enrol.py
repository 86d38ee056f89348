"""Enrol the phone at its operator by a token, with a key that it makes itself and that never leaves it."""

from __future__ import annotations

from pathlib import Path

import grpc

from fedcaptor.client.node_key import make_node_key, node_key
from fedcaptor.common.config import load_config
from fedcaptor.common.enrolment.enrolment_pb2 import EnrolReply, EnrolRequest
from fedcaptor.common.enrolment.proof import METHOD, TOKEN, request_of
from fedcaptor.common.errors import ConfigError, LinkError
from fedcaptor.common.files import read_bounded

_SECONDS = 60.0
_MAX_CERTIFICATE_BYTES = 1 << 20


def enrol(file: Path, token: str) -> None:
    """Enrol the phone of a file (its TOML); its key is made where there is none. To ask again does no harm.

    Raises ConfigError for settings or a token that cannot work, LinkError where the operator's server cannot be
    reached or refuses the phone.
    """
    settings, place = load_config(file).device, file.absolute().parent
    for name in ("superlink", "key"):
        if not getattr(settings, name):
            raise ConfigError(f"{file}: device.{name} is not given: see `fedcaptor config --reference`")
    if not TOKEN.fullmatch(token):
        raise ConfigError("the token is not what `fedcaptor deploy token` printed: give its 43 characters")
    roots = settings.root_certificates
    certificates = read_bounded(place / roots, _MAX_CERTIFICATE_BYTES, "certificate") if roots else None
    path = place / settings.key
    if not path.exists():
        make_node_key(path, path.with_name(f"{path.name}.pub"))
    request = request_of(node_key(path), token)
    with grpc.secure_channel(settings.superlink, grpc.ssl_channel_credentials(certificates)) as channel:
        method = channel.unary_unary(METHOD, EnrolRequest.SerializeToString, EnrolReply.FromString)
        try:
            method(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            raise _explained(error) from None


def _explained(error: grpc.RpcError) -> LinkError:
    code, text = error.code(), str(error.details() or "")[:200]
    lasting = {
        grpc.StatusCode.UNAUTHENTICATED: "the token is wrong, spent or expired: ask the operator for another",
        grpc.StatusCode.UNIMPLEMENTED: "this server enrols nobody by token: give the operator the public key",
    }
    remedy = lasting.get(code, "compare address, network and certificates, or try again later")
    return LinkError(f"the operator's server says {code.name} ({text}): {remedy}", again=code not in lasting)
