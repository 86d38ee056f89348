"""The atlas page of a network: each layer's filters with picture, profile and the patches that excite them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedcaptor.simulations.report.filters import GroupView
from fedcaptor.simulations.report.page import write_page


@dataclass(frozen=True)
class Page:
    """`shape`: (C, H, W) of the images. `images`: searched for patches; 0: the page has none."""

    model: str
    data: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    steps: int
    images: int
    layers: tuple[GroupView, ...]


def write_atlas(path: Path, page: Page) -> Path:
    """Write the page and its folder. Raises StateError when the file cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, "atlas.html.j2", [], {"page": page})
