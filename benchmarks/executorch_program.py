"""A network as ExecuTorch runs it, by XNNPACK in single precision; the package is needed for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedcaptor.client.measure import percentile, repeated
from fedcaptor.common.errors import MissingError
from fedcaptor.common.memory import peak_rss

PACKAGE = "executorch==1.5.1"


def require() -> None:
    """Raise MissingError where the package is not installed."""
    if find_spec("executorch") is None:
        raise MissingError(f"--executorch needs the package: pip install {PACKAGE}")


def lowered(module: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """Return the .pte file of a network for one image [1, C, H, W]."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module.eval(), (image(shape),))
    return bytes(to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def call(file: Path, shape: tuple[int, int, int]) -> Callable[[], object]:
    """Load a .pte file; returns what runs one image."""
    from executorch.runtime import Runtime

    return partial(Runtime.get().load_program(file).load_method("forward").execute, (image(shape),))


def alone(file: Path, shape: tuple[int, int, int], seconds: float) -> tuple[float, ...]:
    """Run a .pte file in this process, which should have nothing else: median, 90th percentile and processor
    milliseconds, bytes of the process with its libraries and at most, bytes of the file.
    """
    import executorch.runtime  # noqa: F401  a library, whose memory is not the network's

    torch.set_num_threads(1)
    before = peak_rss()
    run = call(file, shape)
    repeated(run, 1, 0.5)
    times = 1e3 * repeated(run, 20, seconds)
    median, median_cpu = np.median(times[:, :2], 0)
    return float(median), percentile(times[:, 0], 0.9), float(median_cpu), before, peak_rss(), file.stat().st_size


def image(shape: tuple[int, int, int]) -> torch.Tensor:
    """Draw an image, the same each time."""
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
