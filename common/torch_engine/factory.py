"""Submodel factory: plan in, ready network out, at about the speed of copying its weights. No merging."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fedcaptor.common.arrays import Indices
from fedcaptor.common.errors import PlanError
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.network import network


def sliced(base: BaseModel, plan: Plan) -> Submodel:
    """The submodel that keeps the plan's channels as they are: equal to `base.rebuild(slice_state(...))`, each weight
    moved once. The base is only read, the submodel shares nothing with it.
    """
    tensors = slice_state(base.state, base.groups, plan, own=True)
    return Submodel(base, plan, network(base.skeleton(), tensors, share=True))


def limited(base: BaseModel, classes: Indices) -> Submodel:
    """The whole network with outputs for `classes` alone."""
    return sliced(base, Plan.of(base.groups, {base.groups.output.name: classes}))


def sliced_all(base: BaseModel, plans: Iterable[Plan], threads: int = 1) -> Iterator[Submodel]:
    """Submodels in the order of `plans`, made on several threads from the one base model (gathers release the
    interpreter lock). At most `threads` of them wait for the caller, however many plans there are.
    """
    if threads < 1:
        raise PlanError(f"threads is {threads}, must be at least 1")
    waiting: deque[Future[Submodel]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for plan in plans:
            waiting.append(pool.submit(sliced, base, plan))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
