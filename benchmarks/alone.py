"""What a network takes in a process that has nothing else, and the image that it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedcaptor.client.measure import percentile, repeated
from fedcaptor.common.memory import peak_rss

Call = Callable[[], object]

FIGURES = ("latency_ms_median", "latency_ms_p90", "cpu_ms_median", "loaded_rss_bytes", "peak_rss_bytes", "file_bytes")
"""What is measured of a network in a process of its own, named as in `fedcaptor.client.measure`."""


def alone(load: Callable[[], Call], file: Path, seconds: float) -> dict[str, float]:
    """Load a network and run one image for so long, on one thread of this process, whose libraries are loaded."""
    torch.set_num_threads(1)
    before = peak_rss()
    call = load()
    repeated(call, 1, 0.5)
    times = repeated(call, 20, seconds)
    values = (
        1e3 * float(np.median(times[:, 0])),
        1e3 * percentile(times[:, 0], 0.9),
        1e3 * float(np.median(times[:, 1])),
        before,
        peak_rss(),
        file.stat().st_size,
    )
    return dict(zip(FIGURES, values, strict=True))


def image(shape: tuple[int, int, int]) -> torch.Tensor:
    """Draw an image [1, C, H, W], the same each time."""
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
