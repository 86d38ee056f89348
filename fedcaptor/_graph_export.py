"""The graph of a network, from which phones without torch run it."""

from __future__ import annotations

from pathlib import Path

from fedcaptor.common.data.source import load
from fedcaptor.common.files import check_writable
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network_graph import network_graph


def export_graph(model: str, weights: Path, source: str, out: Path) -> None:
    """Write the graph of a network for images as those of a data source.

    It has no weights: phones read these from the file that the server uses. Raises ModelError for a network that cannot
    be exported.
    """
    check_writable(out)
    _, height, width, channels = load(source).x.shape
    network_graph(BaseModel.load(weights, model, (channels, height, width))).save(out)
