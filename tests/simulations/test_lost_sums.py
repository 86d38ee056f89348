"""A sum that came to nothing is counted where operators look, and still is after the run went on."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Context, Message

from fedcaptor.client.app import make_app
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.messages import MaskedRequest
from fedcaptor.common.secure.messages import MASKING
from fedcaptor.common.wire import unpack
from fedcaptor.server.snapshot import FILE, LostSums, read
from fedcaptor.simulations import runner
from fedcaptor.simulations.local_grid import App
from tests import tiny


def losing(app: App) -> App:
    """All vectors of the first sum are lost on their way, so it has cost its charge and cannot be asked again."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        request, _ = unpack(message.content, MaskedRequest)
        if request.step == MASKING:
            raise ConnectionError
        return reply

    return answer


@pytest.mark.slow
def test_a_sum_that_failed_after_its_vectors_left_is_in_the_snapshot(bars: tuple[Path, Path], tmp_path: Path) -> None:
    config = load_config(None, tiny.overrides(*bars, "population.phones=24", "scores.enabled=false"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_app", lambda phone_of: losing(make_app(phone_of)))
        with pytest.raises(PrivacyError, match="0 survivors"):
            runner.simulate(config, tmp_path / "run")
    snapshot = read(tmp_path / "run" / FILE)
    assert (snapshot.status, snapshot.lost) == ("failed", (LostSums(sum="usage", reason="late", count=1),))
    runner.simulate(config, tmp_path / "run")
    snapshot = read(tmp_path / "run" / FILE)
    assert (snapshot.status, snapshot.lost) == ("ended", (LostSums(sum="usage", reason="late", count=1),))
