"""Many resident phones in one process, each with a connection and a key of its own; run as a program.

They look for messages as often as the client does by default, answer FedCAPTOR's questions as simulated phones do, and
Flower's `train` by what they were sent.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock, Thread

from flwr.app import Context, Message, MetricRecord, RecordDict

from fedcaptor.client.app import make_app
from fedcaptor.client.fleet import connected
from fedcaptor.client.node_key import node_key
from fedcaptor.client.phone import Phone
from fedcaptor.client.resident import pause
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import LinkError
from fedcaptor.common.files import write_whole
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.runner import build_world

Answer = Callable[[Message, int, int], Message]
"""Makes the reply to a message, of a phone by its number and its node's id."""


class Counted:
    """What all phones received and sent, in messages and bytes of their records."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, Lock()
        self._total = {"connected": 0, "messages": 0, "received_bytes": 0, "sent_bytes": 0}

    def add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._total[name] += count
            write_whole(self._file, json.dumps(self._total).encode())


def serve(
    port: int, folder: Path, number: int, answer: Answer, poll_seconds: float, counted: Counted, stop: Event
) -> None:
    """Answer the messages of one phone until `stop`."""
    key, roots = node_key(folder / f"node{number}"), (folder / "ca.pem").read_bytes()
    while not stop.is_set():
        try:
            with connected(f"localhost:{port}", roots, key, 1 << 26) as link:
                counted.add(connected=1)
                quiet, usual = time.monotonic(), 0.0
                while not stop.is_set():
                    message = link.receive()
                    if message is not None:
                        usual = time.monotonic() - quiet
                        reply = answer(message, number, link.node_id)
                        link.send(reply, 0.0)
                        sizes = {"received_bytes": size_of(message), "sent_bytes": size_of(reply)}
                        counted.add(messages=1, **sizes)
                        quiet = time.monotonic()
                    stop.wait(pause(time.monotonic() - quiet, usual, poll_seconds) * random.uniform(0.8, 1))
        except LinkError as error:
            print(number, error, file=sys.stderr, flush=True)
            stop.wait(1)


def size_of(message: Message) -> int:
    """Bytes of a message's arrays and values."""
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.values())


def main(folder: Path, port: int, phones: int) -> None:
    world = build_world(load_config(folder / "config.toml", [f"population.phones={phones}"]), folder / "world")

    def phone_of(context: Context) -> Phone:
        return simulated_phone(world.directory, world.config, world.base, int(context.node_config["partition-id"]))

    app = make_app(phone_of)

    def answer(message: Message, number: int, node: int) -> Message:
        if message.metadata.message_type == "train":
            return Message(_echoed(message.content), reply_to=message)
        context = Context(message.metadata.run_id, node, {"partition-id": number}, RecordDict(), {})
        return app(message, context)

    poll_seconds = world.config.device.poll_seconds
    counted, stop = Counted(folder / "phones.json"), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threads = [
        Thread(target=serve, args=(port, folder, number, answer, poll_seconds, counted, stop), daemon=True)
        for number in range(phones)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _echoed(content: RecordDict) -> RecordDict:
    (arrays,) = content.array_records.values()
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
