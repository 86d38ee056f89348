"""Distributions over the phones, and of the out-of-set score over their images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcaptor.common.arrays import Array
from fedcaptor.simulations.records import Numbers, Phones, Scores, known
from fedcaptor.simulations.report.plot import Plot, axis_title
from fedcaptor.simulations.report.words import percent, size

BINS = 25
_STYLES = {
    "full": ("quiet", "dot"),
    "limited": ("second", "dash"),
    "alone": ("third", "dashdot"),
    "own": ("first", "solid"),
}


@dataclass(frozen=True)
class Axis:
    """`tick`: a format of d3; `show`: the mean in the legend; `whole`: the axis ends at 1."""

    title: str
    tick: str
    show: Callable[[float], str]
    suffix: str = ""
    whole: bool = False

    def edges(self, values: Array, bins: int = BINS) -> Array:
        """Edges of the bins that hold all `values`."""
        least, most = float(values.min()), float(values.max())
        low = min(math.floor(least * 10) / 10, 0.9) if self.whole else min(0.0, least)
        high = max(1.0, most) if self.whole else most * 1.02 or 1.0
        return np.linspace(low, high, bins + 1)


_SHARE = Axis("MACs, effective MACs (full: 100%)", ".0%", percent)
_BYTES = Axis("bytes", ".3~s", size, "B")

Series = tuple[str, str, Numbers]


def phone_plots(phones: Phones) -> list[Plot | None]:
    """Distributions over the phones."""
    return [
        histogram(
            "accuracy",
            "Accuracy on the owner's classes, before and after",
            Axis("accuracy", ".0%", percent, whole=True),
            [
                ("full model", "full", phones.accuracy_full),
                ("full model, own classes only", "limited", phones.accuracy_full_limited),
                ("own submodel alone", "alone", phones.accuracy_submodel),
                ("with escalations", "own", phones.accuracy),
            ],
        ),
        histogram(
            "macs",
            "Computation",
            _SHARE,
            [("effective MACs", "limited", phones.effective_macs_ratio), ("MACs", "own", phones.macs_ratio)],
        ),
        histogram(
            "download",
            "Bytes on each phone",
            _BYTES,
            [("delivered", "limited", phones.download_bytes), ("stored", "own", phones.stored_bytes)],
        ),
    ]


def histogram(id: str, title: str, axis: Axis, series: Sequence[Series]) -> Plot | None:
    """Outlines of histograms that share their bins, told apart by dash and name.

    Bins are counted here: a page with a million phones is as small as any.
    """
    arrays = [(name, style, known(values)) for name, style, values in series]
    arrays = [(name, style, values) for name, style, values in arrays if values.size]
    if not arrays:
        return None
    edges = axis.edges(np.concatenate([values for _, _, values in arrays]))
    traces = []
    for name, style, values in arrays:
        title_and_mean = f"{name} (mean {axis.show(float(values.mean()))})"
        counts = np.histogram(values, edges)[0].tolist()
        hover = f"%{{y}} phones from %{{x:{axis.tick.replace('~', '')}}}"
        traces.append(_outline(title_and_mean, style, edges, counts, hover))
    label = f"{title}: number of phones by {axis.title}; the quantiles are in the table below."
    return Plot(id, title, label, "", traces, _outline_layout(axis, edges, "phones"))


def _outline(name: str, style: str, edges: Array, counts: Sequence[float], hover: str) -> dict[str, Any]:
    colour, dash = _STYLES[style]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [float(edges[0]), *edges.tolist()],
        "y": [0, *counts, 0],
        "line": {"shape": "hv", "dash": dash, "width": 3 if style == "own" else 2, "color": colour},
        **({"fill": "tozeroy", "fillcolor": "wash"} if style == "own" else {}),
        "hovertemplate": hover,
    }


def _outline_layout(axis: Axis, edges: Array, what: str) -> dict[str, Any]:
    low, high = float(edges[0]), float(edges[-1])
    return {
        "xaxis": {
            "title": axis_title(axis.title),
            "range": [low, high + (high - low) / 200],
            "tickformat": axis.tick,
            **({"ticksuffix": axis.suffix} if axis.suffix else {}),
        },
        "yaxis": {"title": axis_title(what), "rangemode": "tozero", "tickformat": ",d"},
    }


def out_of_set(scores: Scores | None) -> Plot | None:
    """Scores of images inside and outside the owners' classes, each as shares of its own number."""
    if scores is None or not sum(scores.inside) or not sum(scores.outside):
        return None
    edges, hover = np.array(scores.edges), "%{y:.1%} score from %{x:.3g}"
    traces = [
        _outline(f"{name} ({sum(counts):,})", style, edges, [c / sum(counts) for c in counts], hover)
        for name, style, counts in (
            ("images of other classes", "limited", scores.outside),
            ("images of own classes", "own", scores.inside),
        )
    ]
    axis = Axis("out-of-set score (low: outside)", ".3~g", percent)
    layout = _outline_layout(axis, edges, "share of images")
    layout["yaxis"]["tickformat"] = ".0%"
    label = "Out-of-set scores of images inside and outside the owners' classes."
    note = "Every phone has its own threshold; images below it are escalated."
    return Plot("scores", "Telling other classes apart", label, note, traces, layout)
