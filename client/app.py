"""Connect a phone to Flower: messages in, messages out. `fedcaptor.client.phone` takes all decisions.

On a device Flower starts a process for every message, and most need no network: torch, which takes seconds and half a
gigabyte, is imported where an answer needs it. `fedcaptor.client.device` has the device's settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcaptor.client.device import Device
from fedcaptor.client.ledger import DECLINED
from fedcaptor.client.phone import Phone
from fedcaptor.common.errors import PrivacyError, WireError
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
from fedcaptor.common.wire import pack, unpack

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
        cluster, accepted, other_weights = None, True, False
        try:
            cluster = phone_of(context).deliver(request, tensors)
        except WireError as error:
            logger.warning("delivery refused: %s", error)
            accepted, other_weights = False, error.reason == "wrong_weights"
        reply = DeliverReply(
            run=request.run,
            round=request.round,
            request=request.request,
            accepted=accepted,
            cluster=cluster,
            other_weights=other_weights,
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
    """Make the phone of a real device from its node configuration, see `Device.of`."""
    return Device.of(context.node_config).phone()


app = make_app(device_phone)
