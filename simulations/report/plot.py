"""A figure for Plotly as the page takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plot:
    """`label`: for those who do not see it. Colours in `traces` and `layout` are names of the page's theme.

    Sizes in CSS pixels.
    """

    id: str
    title: str
    label: str
    note: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 320
    min_width: int = 0


def axis_title(text: str) -> dict[str, Any]:
    """Title of an axis."""
    return {"text": text, "font": {"size": 13}, "standoff": 12}
