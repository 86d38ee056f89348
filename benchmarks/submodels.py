"""The same submodel from the factory and from Torch-Pruning, on random weights and random plans."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedcaptor.common.errors import FedcaptorError, PlanError
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.memory import peak_rss
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.factory import sliced, sliced_all
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace

CLASSES, MULTIPLE = 10, 8
Shape = tuple[int, int, int]
Clock = Callable[[], float]


def random_base(name: str, shape: Shape, seed: int, groups: str | None = None, classes: int = CLASSES) -> BaseModel:
    """Make a registered network with random weights, shared with its state. `groups`: as JSON, traced if absent."""
    torch.manual_seed(seed)
    module = build(name, classes, shape)
    state = state_of(module)
    found = trace(module, name, shape) if groups is None else ChannelGroups.from_json(groups)
    return BaseModel(name, state, found, (0.5,) * shape[0], (0.5,) * shape[0], module)


def random_plans(groups: ChannelGroups, macs: float, count: int, seed: int, multiple: int = MULTIPLE) -> list[Plan]:
    """Draw plans that keep the same share of every group, in multiples, as large as `macs` of the full model's MACs
    allows; which channels is drawn. All classes stay. Raises PlanError when no share is small enough.
    """
    shares = [{g.name: _share(g, s, multiple) for g in groups.prunable} for s in range(128, 0, -1)]
    counts = next((found for found in shares if groups.macs_ratio(found) <= macs), None)
    if counts is None:
        raise PlanError(f"macs is {macs}, {groups.model} keeps {groups.macs_ratio(shares[-1]):.2g} at least: raise it")
    rng = np.random.default_rng(seed)
    draws = [
        {g.name: rng.choice(g.channels, counts[g.name], replace=False) for g in groups.prunable} for _ in range(count)
    ]
    return [Plan.of(groups, kept) for kept in draws]


def _share(group: Group, share: int, multiple: int) -> int:
    """Return how many channels a group keeps of `share` in 128 of them: a multiple, or all that there are."""
    step = group.step(multiple)
    return min(group.channels, max(step, group.channels * share // 128 // step * step))


def torch_pruning(base: BaseModel, plan: Plan, clock: Clock = time.thread_time) -> tuple[nn.Module, float]:
    """Go its documented way to the plan's submodel: a deep copy, the copy's dependency graph, one group cut after
    the other. Returns the seconds of the graph as well.
    """
    import torch_pruning

    removed = {
        name: np.setdiff1d(np.arange(base.groups.by_name[name].channels), kept).tolist()
        for name, kept in plan.kept.items()
    }
    module, example = copy.deepcopy(base.module), torch.zeros(1, *base.groups.input_shape)
    start = clock()
    graph: Any = torch_pruning.DependencyGraph().build_dependency(module, example, verbose=False)
    tracing = clock() - start
    for name, channels in removed.items():
        root = module.get_submodule(name)
        function = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, function, idxs=channels).prune(record_history=False)
    return module, tracing


def factory_seconds(base: BaseModel, plans: Sequence[Plan], clock: Clock = time.thread_time) -> float:
    """Return the seconds a submodel from the factory, each dropped at once."""
    start = clock()
    for plan in plans:
        sliced(base, plan)
    return (clock() - start) / len(plans)


def torch_pruning_seconds(
    base: BaseModel, plans: Sequence[Plan], clock: Clock = time.thread_time
) -> tuple[float, float]:
    """Return the seconds a submodel from Torch-Pruning, each dropped at once, and how many of them its graph takes."""
    start = clock()
    tracing = [torch_pruning(base, plan, clock)[1] for plan in plans]
    return (clock() - start) / len(plans), sum(tracing) / len(plans)


def copying_seconds(base: BaseModel, plan: Plan, clock: Clock = time.thread_time) -> float:
    """Return the seconds to copy the plan's tensors, already cut, into memory at hand: nothing is faster."""
    tensors = slice_state(base.state, base.groups, plan, own=True)
    copies = {name: np.zeros_like(array) for name, array in tensors.items()}
    start = clock()
    for name, array in tensors.items():
        np.copyto(copies[name], array)
    return clock() - start


def require_equal(base: BaseModel, plan: Plan) -> None:
    """Raise FedcaptorError unless both ways give the same tensors and outputs, bit for bit."""
    ours, theirs = sliced(base, plan).module, torch_pruning(base, plan)[0]
    left, right = ours.state_dict(), theirs.state_dict()
    x = torch.randn(2, *base.groups.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        if not same or not torch.equal(ours(x), theirs(x)):
            raise FedcaptorError(f"{base.name}: Torch-Pruning's submodel is another one, nothing to compare")


def wall_seconds(base: BaseModel, plans: Sequence[Plan], threads: int) -> float:
    """Return the seconds by the clock on the wall for a submodel of a batch, each dropped at once."""
    start = time.perf_counter()
    for _ in sliced_all(base, plans, threads):
        pass
    return (time.perf_counter() - start) / len(plans)


def merging_seconds(base: BaseModel, plan: Plan, images: int, seed: int) -> float:
    """Return the seconds to slice and merge one submodel, once the evidence of `images` noise images is at hand."""
    rng = np.random.default_rng(seed)
    channels, *size = base.groups.input_shape
    noise = rng.integers(0, 256, (images, *size, channels), dtype=np.uint8)
    frozen = replace(base, module=base.rebuild(base.state))
    evidence = Evidence.gather(frozen, np.arange(CLASSES), noise, seed=seed)
    start = time.thread_time()
    evidence.build(plan)
    return time.thread_time() - start


def peak(maker: str, name: str, shape: Shape, groups: str, macs: float, count: int, seed: int) -> tuple[int, int]:
    """Return peak resident bytes of this process with all loaded, and after `count` submodels one after another.

    For a process of its own. `maker`: "ours" or "torch-pruning".
    """
    torch.set_num_threads(1)
    base = random_base(name, shape, seed, groups)
    plans = random_plans(base.groups, macs, count, seed)
    if maker == "torch-pruning":
        importlib.import_module("torch_pruning")  # part of what is loaded, not of making
    before = peak_rss()
    for _module in _made(maker, base, plans):
        pass
    return before, peak_rss()


def _made(maker: str, base: BaseModel, plans: Sequence[Plan]) -> Iterator[nn.Module]:
    for plan in plans:
        yield sliced(base, plan).module if maker == "ours" else torch_pruning(base, plan)[0]
