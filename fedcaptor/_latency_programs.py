"""Programs that a latency table of a network is measured with on a phone."""

from __future__ import annotations

from pathlib import Path

from fedcaptor.common.data.source import load
from fedcaptor.common.files import check_writable, write_whole
from fedcaptor.common.onnx_latency import latency_programs
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network_graph import network_graph


def write_latency_programs(model: str, weights: Path, source: str, out: Path, multiple: int) -> int:
    """Write the programs of a network for images as those of a data source; returns how many there are.

    Raises ModelError for a network that cannot become an ONNX graph.
    """
    check_writable(out)
    _, height, width, channels = load(source).x.shape
    graph = network_graph(BaseModel.load(weights, model, (channels, height, width)))
    programs = latency_programs(graph, multiple)
    write_whole(out, programs.to_bytes())
    return len(programs.contents)
