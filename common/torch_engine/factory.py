"""Turn plans into networks at about the speed of copying weights, which are not reconstructed."""

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
    """Make the submodel that keeps the plan's channels as they are.

    It equals `base.rebuild(slice_state(...))`, but each weight is moved once. The base is only read, the submodel
    shares no memory with it.
    """
    tensors = slice_state(base.state, base.groups, plan, own=True)
    return Submodel(base, plan, network(base.skeleton(), tensors, share=True))


def restricted(base: BaseModel, classes: Indices) -> Submodel:
    """Make the whole network with outputs for `classes` alone."""
    return sliced(base, Plan.of(base.groups, {base.groups.output.name: classes}))


def sliced_all(base: BaseModel, plans: Iterable[Plan], threads: int = 1) -> Iterator[Submodel]:
    """Make submodels in the order of `plans` on several threads (gathers release the interpreter lock).

    At most `threads` of them wait for the caller, however many plans there are. Raises PlanError for fewer than one
    thread.
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
