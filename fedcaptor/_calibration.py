"""Calibrated weights: a network whose softmax outputs can be believed counts its owner's classes better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedcaptor.common.arrays import Array, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.files import check_writable
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.weights_file import load_state, save_state
from fedcaptor.server.calibrate import calibrate


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Say what was folded into the last layer, and the accuracy on other `images` before and after."""

    calibration: Calibration
    before: float
    after: float
    images: int


def calibrate_files(model: str, weights: Path, source: str, out: Path) -> Calibrated:
    """Fit temperature and biases on the source's reference images, and write weights that have them.

    Raises ModelError for a last layer without a bias.
    """
    check_writable(out)
    data = load(source)
    _, height, width, channels = data.x.shape
    base, parts = BaseModel.load(weights, model, (channels, height, width)), split(data)
    found = calibrate(base.scores(data.x[parts["reference"]]), data.y[parts["reference"]])
    state = base.calibrated(found)
    before = base.scores(data.x[parts["phones"]])
    labels = data.y[parts["phones"]]
    metadata = {key: text for key, text in load_state(weights)[1].items() if key != "accuracy"}  # that of before
    save_state(out, state, metadata)
    return Calibrated(found, _accuracy(before, labels), _accuracy(found.likelihoods(before), labels), len(labels))


def _accuracy(scores: Array, labels: Indices) -> float:
    return float((scores.argmax(1) == labels).mean())
