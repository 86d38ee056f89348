"""The base model in memory, once a process; its network once a thread."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from fedcaptor.common.torch_engine.base import BaseModel


@lru_cache(maxsize=2)
def load_base(weights: Path, name: str, input_shape: tuple[int, int, int]) -> BaseModel:
    """The base model, loaded once a process."""
    torch.set_num_threads(1)  # results do not depend on the machine's cores, and phones run side by side
    return BaseModel.load(weights, name, input_shape)


_thread = threading.local()


def of_this_thread(base: BaseModel) -> BaseModel:
    """The same base model with a network of the calling thread's own: hooks live on it, phones answer side by side."""
    if getattr(_thread, "origin", None) is not base:
        torch.set_num_threads(1)  # holds for the calling thread
        _thread.origin, _thread.own = base, replace(base, module=base.rebuild(base.state))
    own: BaseModel = _thread.own
    return own
