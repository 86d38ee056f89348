"""Own parts that give something else, or are not there, are named. Good ones stand in docs/examples/own-parts.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import fedcaptor
from fedcaptor.client.fallback import out_of_set_score
from fedcaptor.common.config import Population
from fedcaptor.common.data.source import load
from fedcaptor.server.clusters import first_centroids
from fedcaptor.simulations.habits import shares_by_law

BROKEN = {
    "shares": "def part(settings, classes, rounds, seed): return [[1.0]]",
    "score": "def part(scores, others): return [float('nan')] * len(scores)",
    "source": "def part(): return 3",
    "clusters": "class part:\n  def first(self, pairs, k, seed): return [[2.0, 0.0]]",
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shares", r"population.law 'broken:part' gave shares \(1, 1\), must be \(1, 120, 6\)"),
        ("score", r"fallback.score 'broken:part' gave \(2,\) for 2 images, must be finite"),
        ("source", "broken:part: gave a int: return a fedcaptor.Dataset"),
        ("clusters", r"clusters.method 'broken:part' gave centroids \(1, 2\) in `first`, must be at most \(3, 2\)"),
    ],
)
def test_a_part_that_gives_something_else_is_named(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN[kind])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    call = {
        "shares": lambda: shares_by_law(Population(law="broken:part"), 6, 1, 0),
        "score": lambda: out_of_set_score(np.eye(2), "broken:part"),
        "source": lambda: load("broken:part"),
        "clusters": lambda: first_centroids(np.eye(2), 3, 0, "broken:part"),
    }[kind]
    with pytest.raises(fedcaptor.FedcaptorError, match=message):
        call()
    sys.modules.pop("broken", None)


@pytest.mark.parametrize("key", ["population.law", "fallback.score", "clusters.method", "data.source"])
def test_a_part_that_is_not_there_is_named(key: str) -> None:
    section, name = key.split(".")
    assert getattr(getattr(fedcaptor.load_config(None, [f"{key}=nowhere:part"]), section), name) == "nowhere:part"
    if key != "data.source":
        with pytest.raises(
            fedcaptor.ConfigError, match=f"{key} is 'nowhere': Input should be .* or package.module:object"
        ):
            fedcaptor.load_config(None, [f"{key}=nowhere"])


def test_a_part_without_a_name_cannot_be_configured() -> None:
    with pytest.raises(fedcaptor.ConfigError, match=r"population\.law is <function .*: define it at the top"):
        fedcaptor.simulate(overrides={"population.law": lambda *_: None})
