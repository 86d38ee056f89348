"""The server of one secure sum in a process of its own, so that its memory and seconds are its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.memory import peak_rss
from fedcaptor.common.secure.messages import STEPS
from fedcaptor.common.secure.terms import Terms
from fedcaptor.server.secure_sum.server_sum import ServerSum


@dataclass(frozen=True, eq=False)
class Served:
    """`result`: the sum, uint32 [length]. `figures`: seconds, holders, threshold, masks, peak_rss_bytes."""

    result: NDArray[np.uint32]
    figures: dict[str, Any]


def serve_in_process(terms: Terms, nodes: int, answer: Callable[[int, int, bytes], bytes]) -> Served:
    """Run a sum; `answer(step, node, request)` is called here for each message, empty for a phone that is lost."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.secure_server", json.dumps(asdict(terms)), str(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin
    assert child.stdout
    try:
        for step in range(STEPS):
            while (node := int.from_bytes(_receive(child.stdout), "little")) < nodes:
                _send(child.stdin, answer(step, node, _receive(child.stdout)))
        figures = json.loads(_receive(child.stdout))
        return Served(np.frombuffer(_receive(child.stdout), np.uint32), figures)
    finally:
        child.stdin.close()  # ends a server that still waits
        child.stdout.close()
        child.wait()


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(4, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(4)
    if len(head) < 4:
        raise EOFError("the other process of the secure sum ended: see its error above")
    return pipe.read(int.from_bytes(head, "little"))


def _server(terms: Terms, nodes: int) -> None:
    """Processor seconds of the server's own work: waiting and carrying messages do not count."""
    seconds, server = 0.0, ServerSum(terms, range(nodes))
    here, there = sys.stdin.buffer, sys.stdout.buffer
    for _ in range(STEPS):
        for node in sorted(server.waiting):
            start = time.process_time()
            request = server.request(node)
            seconds += time.process_time() - start
            _send(there, node.to_bytes(4, "little"))
            _send(there, request)
            if reply := _receive(here):
                start = time.process_time()
                server.add(node, reply)
                seconds += time.process_time() - start
        start = time.process_time()
        server.advance()
        seconds += time.process_time() - start
        _send(there, nodes.to_bytes(4, "little"))
    figures = {
        "server_seconds": seconds,
        "neighbours": server.topology.holders,
        "threshold": server.topology.threshold,
        "least_honest": server.topology.least_honest,
        "masks": server.mean_degree,
        "peak_rss_bytes": peak_rss(),
    }
    _send(there, json.dumps(figures).encode())
    _send(there, server.result().tobytes())


if __name__ == "__main__":
    _server(Terms(**json.loads(sys.argv[1])), int(sys.argv[2]))
