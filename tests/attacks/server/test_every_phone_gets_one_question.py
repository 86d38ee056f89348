"""Nobody is asked by cluster: in each step all phones get one question, but for the message of the sum itself."""

from __future__ import annotations

from pathlib import Path

from fedcaptor.common.messages import digest_of
from fedcaptor.common.secure.messages import STEPS
from tests.simulations.test_masked import PHONES, World


def test_headers_and_tensors_are_the_same_for_all(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.sum()
    for step in range(STEPS):
        asked = [world.asked[number, step] for number in range(PHONES)]
        assert len({request.model_dump_json() for request, _ in asked}) == 1
        shared = [{name: array for name, array in tensors.items() if name != "secure"} for _, tensors in asked]
        assert len({digest_of(tensors) for tensors in shared}) == 1
