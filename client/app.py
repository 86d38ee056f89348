"""Connect a phone to Flower: messages in, messages out. `fedcaptor.client.phone` takes all decisions.

On a device Flower starts a process for every message, and most need no network: torch, which takes seconds and half a
gigabyte, is imported where an answer needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcaptor.client.images import FolderFeed
from fedcaptor.client.ledger import DECLINED
from fedcaptor.client.phone import Phone
from fedcaptor.client.reply_timing import ReplyTiming
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError, WireError
from fedcaptor.common.messages import (
    DeliverReply,
    DeliverRequest,
    LocalReply,
    LocalRequest,
    MaskedReply,
    MaskedRequest,
    SumReply,
    SumRequest,
)
from fedcaptor.common.secure.register import enrolled_by
from fedcaptor.common.tiers import as_tier
from fedcaptor.common.wire import pack, unpack

if TYPE_CHECKING:
    from fedcaptor.client.learner import Learner

logger = logging.getLogger(__name__)

PhoneOf = Callable[[Context], Phone]
Handler = Callable[[Message, Context], Message]


def make_app(phone_of: PhoneOf) -> ClientApp:
    """Make a ClientApp whose phones come from `phone_of`."""
    app = ClientApp()

    @app.query("sum")
    @_tells_nothing
    def add(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, SumRequest)
        values = phone_of(context).answer(request, tensors)
        return Message(pack(SumReply.to(request), {"values": values}), reply_to=message)

    @app.query("masked")
    @_tells_nothing
    def add_masked(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, MaskedRequest)
        secure = phone_of(context).masked(request, tensors)
        return Message(pack(MaskedReply.to(request), {"secure": secure}), reply_to=message)

    @app.query("local")
    @_tells_nothing
    def answer_alone(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, LocalRequest)
        answer = phone_of(context).local(request)
        return Message(pack(LocalReply.to(request), {"answer": answer}), reply_to=message)

    @app.query("deliver")
    @_tells_nothing
    def deliver(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, DeliverRequest)
        cluster, accepted = None, True
        try:
            cluster = phone_of(context).deliver(request, tensors)
        except WireError as error:
            logger.warning("delivery refused: %s", error)
            accepted = False
        reply = DeliverReply(
            run=request.run, round=request.round, request=request.request, accepted=accepted, cluster=cluster
        )
        return Message(pack(reply, {}), reply_to=message)

    return app


def _tells_nothing(handler: Handler) -> Handler:
    """Replace every error of a handler by one word, as Flower sends an exception's text to the server.

    The server cannot tell whether the budget is spent, a photo cannot be read or the disk is full. The reason stays in
    the phone's own log.
    """

    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            logger.warning("not answered: %r", error)
        raise PrivacyError(DECLINED)

    return answer


def device_phone(context: Context) -> Phone:
    """Make the phone of a real device from its node configuration; noise is the operating system's.

    `folder`: the phone's own storage; `images`: its images, of the input's height and width; `weights`, `model`,
    `input-shape` ("1x28x28"): the base model; `config`: TOML with what the phone insists on. Paths are absolute.
    `tier`: its device tier, where there are tiers and `personal.tier` does not give it. `register` and `operator`: file
    of the enrolled phones and the public key that signed it; then this phone adds up with enrolled ones alone. Raises
    ConfigError on a key that is missing or malformed.
    """
    node = {key: str(value) for key, value in context.node_config.items()}
    for key in ("folder", "images", "weights", "model", "config", "input-shape"):
        if not node.get(key):
            raise ConfigError(f"node configuration lacks {key!r}: start the node with --node-config '{key}=\"…\"'")
    shape = node["input-shape"].split("x")
    if len(shape) != 3 or not all(n.isdecimal() for n in shape):
        raise ConfigError(f'input-shape is {node["input-shape"]!r}, must be channels, height and width: "1x28x28"')
    channels, height, width = map(int, shape)
    config = load_config(Path(node["config"]))
    config.privacy.require_protected()
    if config.tiers and not (node.get("tier") or config.personal.tier):
        names = ", ".join(tier.name for tier in config.tiers)
        raise ConfigError(f"the phone's tier is not given: start the node with --node-config 'tier=\"…\"', of {names}")
    config = as_tier(config, node["tier"]) if node.get("tier") else config

    def learner() -> Learner:
        from fedcaptor.client.learner import Learner
        from fedcaptor.client.torch_engine import TorchEngine, load_base

        engine = TorchEngine(load_base(Path(node["weights"]), node["model"], (channels, height, width)))
        return Learner(
            Path(node["folder"]), engine, FolderFeed(Path(node["images"]), (height, width, channels)), config
        )

    folder, timing = Path(node["folder"]), ReplyTiming(config.delivery.answer_seconds)
    return Phone(folder, learner, config, timing=timing, enrolled=enrolled_by(node))


app = make_app(device_phone)
