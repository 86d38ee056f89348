"""Phones of a simulated population: their images, and what makes them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine
from fedcaptor.client.learner import Learner
from fedcaptor.client.phone import Phone
from fedcaptor.client.torch_engine import of_this_thread
from fedcaptor.common.arrays import Images
from fedcaptor.common.config import Config
from fedcaptor.common.errors import DataError
from fedcaptor.common.tiers import as_tier, drawn
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.simulations import looks
from fedcaptor.simulations.population import images_file

GRAPH = "network.onnx"  # in a run's folder, where phones run networks with ONNX Runtime


def simulated_phone(directory: Path, config: Config, base: BaseModel, number: int) -> Phone:
    """Phone `number` (`partition-id`) of a simulated population in `directory`."""
    folder = directory / "phones" / f"{number:06d}"
    tier = drawn(config, number)
    own = config if tier is None else as_tier(config, tier.name)

    def learner() -> Learner:
        feed = MappedFeed(directory / "population", number, looks.drawn(config, number))
        return Learner(folder, phone_engine(directory, config, base), feed, own, durable=False)

    return Phone(folder, learner, own, seed=(config.run.seed, number), durable=False)


def phone_engine(directory: Path, config: Config, base: BaseModel) -> Engine:
    """Return what runs the base model on the phones of a population."""
    return _onnx_engine(directory / GRAPH, base) if config.run.engine == "onnx" else of_this_thread(base)


@lru_cache(maxsize=2)
def _onnx_engine(graph: Path, base: BaseModel) -> Engine:
    from fedcaptor.client.onnx_engine import Network, OnnxEngine
    from fedcaptor.common.onnx_graph import NetworkGraph

    return OnnxEngine(Network(NetworkGraph.load(graph), base.state, base.mean, base.std), base.groups)


class MappedFeed:
    """A simulated phone's share of `DIR/population`, mapped, not loaded. Rounds count from 1.

    `look`: number of the look of its photos.
    """

    def __init__(self, directory: Path, phone: int, look: int = 0) -> None:
        self._directory, self._phone, self._look = directory, phone, look

    def use(self, round: int) -> Images:
        return self._images("use", round)

    def check(self, round: int) -> Images:
        return self._images("check", round)

    def corrections(self, round: int) -> npt.NDArray[np.int16]:
        stored = _mapped(self._directory / "corrections.npy")
        index = self._index("use", round)
        if stored.shape[1] == 1 and stored.shape[2] == 1:
            return np.full(len(index), -1, dtype=np.int16)
        return np.array(stored[round - 1, self._phone, : len(index)])

    def _index(self, part: str, round: int) -> npt.NDArray[np.int32]:
        stored = _mapped(self._directory / f"{part}.npy")
        if not 1 <= round <= stored.shape[0]:
            raise DataError(f"round {round} has no images, must lie in 1..{stored.shape[0]}: prepare more rounds")
        row = stored[round - 1, self._phone]
        return np.array(row[row >= 0])

    def _images(self, part: str, round: int) -> Images:
        return np.array(_mapped(images_file(self._directory, self._look))[self._index(part, round)])


@lru_cache(maxsize=16)
def _mapped(path: Path) -> npt.NDArray[Any]:
    mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
