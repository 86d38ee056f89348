"""What an adaptation costs over the rounds of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.config import load_config
from fedcaptor.server.adapt import adapt


def test_later_rounds_publish_what_the_first_learned_and_ask_for_no_sum() -> None:
    """A flow that can neither sum nor steps: each sum would be charged again."""
    learned, published = Adaptation(np.zeros((1, 6)), np.zeros(6), np.zeros((1, 4))), []
    flow: Any = SimpleNamespace(
        config=load_config(None, ["domain.enabled=true"]),
        adaptation=learned,
        phase=lambda round, name, compute: published.append((round, name)),
    )
    assert adapt(flow, 3) is learned
    assert published == [(3, "adapt")]


def test_nothing_is_asked_where_it_is_off() -> None:
    assert adapt(SimpleNamespace(config=load_config()), 1) is None  # type: ignore[arg-type]
