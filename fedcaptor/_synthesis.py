"""Images that a network's weights alone give, for servers that have none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import check_writable, replacing
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.synthesis import synthesise


@dataclass(frozen=True)
class Synthesised:
    """Say how many `images` were written, and what share of them the network calls what they are labelled."""

    images: int
    agreement: float


def synthesise_files(
    model: str,
    weights: Path,
    shape: str,
    out: Path,
    each: int,
    steps: int,
    seed: int,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Synthesised:
    """Write `each` images of every class, of `shape` such as 3x32x32, as a data source `.npz` that says what they are.

    Raises ConfigError for another shape.
    """
    check_writable(out)
    sides = [int(side) for side in shape.split("x") if side.isdecimal()]
    if len(sides) != 3 or not min(sides) or "x".join(map(str, sides)) != shape:
        raise ConfigError(f"shape is {shape!r}, must be channels, height and width such as 3x32x32")
    base = BaseModel.load(weights, model, (sides[0], sides[1], sides[2]))
    x, y = synthesise(base, each, steps, seed, lambda done, total: on_progress("images", done, total))
    names = np.array(base.class_names or [str(label) for label in range(base.groups.classes)])
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, x=x, y=y, names=names, synthetic=np.True_)
    return Synthesised(len(y), float((base.scores(x).argmax(1) == y).mean()))
