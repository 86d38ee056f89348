"""A network as ExecuTorch runs it, by XNNPACK in single precision; the package is needed for nothing else."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from benchmarks.alone import Call, alone, image
from fedcaptor.common.errors import MissingError

PACKAGE = "executorch==1.5.1"


def require() -> None:
    """Raise MissingError where the package is not installed."""
    if find_spec("executorch") is None:
        raise MissingError(f"the runtime executorch needs its package: pip install {PACKAGE}")


def lowered(module: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """Return the .pte file of a network for one image [1, C, H, W]."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module.eval(), (image(shape),))
    return bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def call(file: Path, shape: tuple[int, int, int]) -> Call:
    """Load a .pte file; returns what runs one image on one thread."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)  # XNNPACK takes a thread for each core, and nothing else sets another number
    return partial(Runtime.get().load_program(file).load_method("forward").execute, (image(shape),))


def executorch_alone(file: Path, shape: tuple[int, int, int], seconds: float) -> dict[str, float]:
    """Run a .pte file in this process, which should have nothing else. For a process of its own."""
    import executorch.runtime  # noqa: F401  a library, whose memory is not the network's

    return alone(partial(call, file, shape), file, seconds)
