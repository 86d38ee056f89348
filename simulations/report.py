"""One self-contained HTML page of a simulated run: no network, readable without scripts, colour or a mouse.

Reads `summary.json` and `details.json` and, when there, `atlas.safetensors` of a run directory. All text from these
files is data: it is escaped in the page and in the plots, and the page's policy lets only its own scripts run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import safetensors.numpy
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from common.assets import asset
from common.errors import StateError
from common.files import replacing

SUMMARY, DETAILS, ATLAS, REPORT = "summary.json", "details.json", "atlas.safetensors", "report.html"

MAX_FILTERS = 32  # of one group in the atlas
MAX_GROUPS = 64  # in the atlas
MAX_SPRITES = 6 << 20  # bytes of all pictures, before base64
MAX_SIDE = 64  # pixels of a picture
MAX_CLASSES = 60  # columns of a heat map
MAX_ROWS = 300  # of the table of phases

_SPACE = "\u00a0"  # no line break between a number and its unit
_TEMPLATES = asset("simulations/templates")


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_known)]
Numbers = tuple[Number, ...]
Array = NDArray[np.float64]


class _Part(BaseModel):
    """Unknown fields are left alone: a newer run may have written more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(_Part):
    """An accuracy over the phones."""

    mean: Number = None
    p5: Number = None


class Accuracies(_Part):
    """Accuracy on each owner's classes."""

    full: Spread
    full_limited: Spread
    personalised: Spread


class ClusterOnly(_Part):
    """The same run with one model for each cluster and nothing for the phone alone."""

    accuracy: Spread = Field(default_factory=Spread)
    macs_ratio: Number = None
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    download_bytes_ratio: Number = None


class OutOfSet(_Part):
    auroc: Number = None
    escalated_ratio: Number = None


class Privacy(_Part):
    """`epsilon` None: noise is off."""

    epsilon: Number = None
    delta: Number = None
    sums: Any = None
    delivery_leak: str = ""


class Summary(_Part):
    """`summary.json`."""

    phones: int
    clusters: int
    rounds: int
    seconds: Number = None
    model: str
    data: str
    seed: int
    accuracy: Accuracies
    macs_ratio: Number
    effective_macs_ratio: Number = None
    parameters_ratio: Number = None
    download_bytes_ratio: Number = None
    storage_ratio: Number = None
    cluster_only: ClusterOnly | None = None
    out_of_set: OutOfSet | None = None
    privacy: Privacy | None = None
    faults: dict[str, Any] | None = None
    peak_rss_bytes: Number = None
    marks: tuple[str, ...] = ()


class Phones(_Part):
    """One number for each phone, None where it has none."""

    accuracy_full: Numbers = ()
    accuracy_full_limited: Numbers = ()
    accuracy: Numbers = ()
    macs_ratio: Numbers = ()
    effective_macs_ratio: Numbers = ()
    download_bytes: Numbers = ()
    classes: Numbers = ()

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len({len(values) for _, values in self if values}) > 1:
            raise ValueError("the lists must have one entry for each phone")
        return self


class Layer(_Part):
    """What the planner decided for one channel group."""

    group: str
    channels: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=0)]
    share_of_macs: Number = None
    next_loss_per_mac: Number = None
    why: str = ""


class Cluster(_Part):
    """A plan: of a cluster, for one device tier where there are tiers."""

    cluster: int
    tier: str = ""
    phones: Number = None
    centroid: Numbers = ()
    classes: tuple[int | str, ...] = ()
    macs_ratio: Number = None
    parameters_ratio: Number = None
    layers: tuple[Layer, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.cluster} {self.tier}".strip()


class Phase(_Part):
    round: int
    phase: str
    seconds: Number = None
    asked: int = 0
    replies: int = 0
    dropped: int = 0
    refused: dict[str, int] = Field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


class PrivateSum(_Part):
    name: str
    length: int | None = None
    clip: Number = None
    noise_multiplier: Number = None
    rho: Number = None


class Details(_Part):
    """`details.json`."""

    class_names: tuple[str, ...] = ()
    phones: Phones = Field(default_factory=Phones)
    clusters: tuple[Cluster, ...] = ()
    phases: tuple[Phase, ...] = ()
    sums: tuple[PrivateSum, ...] = ()

    @model_validator(mode="after")
    def _one_share_each(self) -> Self:
        for cluster in self.clusters:
            if cluster.centroid and len(cluster.centroid) != len(self.class_names):
                raise ValueError(
                    f"cluster {cluster.cluster} has {len(cluster.centroid)} shares for {len(self.class_names)} classes"
                )
        return self

    def name(self, label: int | str) -> str:
        """The name of a class by its number; a name stays as it is."""
        if isinstance(label, int):
            return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"
        return label


@dataclass(frozen=True)
class Plot:
    """A figure for Plotly, drawn by the page. Colours are names of the page's theme."""

    id: str
    title: str
    label: str
    note: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 320
    min_width: int = 0


@dataclass(frozen=True)
class FilterView:
    number: int
    family: int | None
    column: int
    classes: list[tuple[str, float]]
    path: str


@dataclass(frozen=True)
class GroupView:
    """One group of the atlas: a sprite of `len(filters)` pictures side by side."""

    name: str
    filters: list[FilterView]
    total: int
    sprite: str
    aspect: float


Model = TypeVar("Model", Summary, Details)


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run directory. Raises StateError that names a missing or damaged file."""
    summary = _read(directory / SUMMARY, Summary)
    details = _read(directory / DETAILS, Details)
    atlas, left_out = _atlas(directory / ATLAS, details)
    plots = _plots(summary, details)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "size": size, "duration": duration, "number": number, "count": count}
    environment.filters |= {"policy_hash": _policy_hash, "words": _words}
    template = environment.get_template("report.html.j2")
    plotly = get_plotlyjs().replace("\r\n", "\n")
    page = template.render(
        summary=summary,
        details=details,
        marks=_marks(summary),
        plots={plot.id: plot for plot in plots},
        drawings=[
            {"id": plot.id, "traces": plot.traces, "layout": plot.layout, "height": plot.height} for plot in plots
        ],
        quantiles=_quantiles(details.phones),
        gains=_gains(details.phones),
        faults=_flat(summary.faults or {}),
        sums_note=_words(summary.privacy.sums) if summary.privacy else "",
        phases=details.phases[-MAX_ROWS:],
        by_phase=_by_phase(details.phases),
        atlas=atlas,
        atlas_left_out=left_out,
        max_filters=MAX_FILTERS,
        plotly=Markup(plotly),
    )
    path = directory / REPORT
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StateError(f"{path} cannot be written ({error.strerror}); check the disk and the permissions") from error
    return path


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StateError(f"{path} is missing; run the simulation to its end or give its directory") from error
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); check the permissions") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StateError(f"{path} is damaged ({where}: {first['msg']}); run the simulation again") from error


# --- words and numbers -------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    """A ratio as percent."""
    return "–" if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f}{_SPACE}{unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g}{_SPACE}{unit}"
        value /= 1000
    raise AssertionError


def duration(value: float | None) -> str:
    """Seconds, in words."""
    if value is None:
        return "–"
    if value < 59.5:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    hours, rest = divmod(round(value), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def number(value: float | None) -> str:
    """Three significant digits."""
    return "–" if value is None else f"{value:.3g}"


def count(value: int | None) -> str:
    """A whole number with separators."""
    return "–" if value is None else f"{value:,}"


def _words(value: Any) -> str:
    """A value of unknown shape as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    if isinstance(value, float):
        return number(value)
    return "" if value is None else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of a nested mapping."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        rows += _flat(value, f"{name}: ") if isinstance(value, Mapping) else [(name, _words(value) or "–")]
    return rows


def _marks(summary: Summary) -> list[str]:
    marks = list(dict.fromkeys(summary.marks))
    off = summary.privacy is not None and summary.privacy.epsilon is None
    if off and not any("noise" in mark.lower() for mark in marks):
        marks.append("noise off")
    return marks


def _short(text: str, length: int = 20) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _plain(text: str) -> str:
    """Text that Plotly shows as it is: it would read tags and entities."""
    return html.escape(text, quote=False)


def _array(values: Numbers) -> Array:
    """The known values."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _policy_hash(script: str) -> str:
    """What the page's policy allows `script` by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# --- phones ------------------------------------------------------------------------------------------------------

_PER_PHONE = (
    ("accuracy_full", "accuracy of the full model", percent),
    ("accuracy_full_limited", "accuracy of the full model, own classes only", percent),
    ("accuracy", "accuracy of the phone's own model", percent),
    ("macs_ratio", "own model's MACs, of the full model's", percent),
    ("effective_macs_ratio", "the same with escalation", percent),
    ("download_bytes", "download", size),
    ("classes", "own classes", number),
)


def _quantiles(phones: Phones) -> list[tuple[str, list[str]]]:
    """For each figure of the phones: mean, 5 %, 25 %, 50 %, 75 % and 95 %."""
    rows = []
    for field, title, words in _PER_PHONE:
        values = _array(getattr(phones, field))
        if values.size:
            points = [float(values.mean()), *map(float, np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))]
            rows.append((title, [words(point) for point in points]))
    return rows


def _gains(phones: Phones) -> list[tuple[str, int, int, int]]:
    """Against each full model: phones whose own model is better, equal, worse."""
    rows = []
    for title, before in (
        ("the full model", phones.accuracy_full),
        ("the full model, own classes only", phones.accuracy_full_limited),
    ):
        pairs = [(a, b) for a, b in zip(phones.accuracy, before, strict=False) if a is not None and b is not None]
        if pairs:
            better, worse = sum(a > b + 1e-9 for a, b in pairs), sum(a < b - 1e-9 for a, b in pairs)
            rows.append((title, better, len(pairs) - better - worse, worse))
    return rows


def _by_phase(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Totals over all rounds, by phase."""
    found: dict[str, list[Phase]] = {}
    for phase in phases:
        found.setdefault(phase.phase, []).append(phase)
    return [
        {
            "phase": name,
            "seconds": sum(p.seconds or 0 for p in of),
            "asked": sum(p.asked for p in of),
            "replies": sum(p.replies for p in of),
            "dropped": sum(p.dropped for p in of),
            "refused": dict(sum((Counter(p.refused) for p in of), Counter())),
            "bytes_down": sum(p.bytes_down for p in of),
            "bytes_up": sum(p.bytes_up for p in of),
        }
        for name, of in found.items()
    ]


# --- plots -------------------------------------------------------------------------------------------------------

_STYLES = {"full": ("quiet", "dot"), "limited": ("second", "dash"), "own": ("first", "solid")}


def _plots(summary: Summary, details: Details) -> list[Plot]:
    phones = details.phones
    plots = [
        _trade(summary),
        _histogram(
            "accuracy", "Accuracy on the owner's classes", "accuracy", "p",
            [("full model", "full", phones.accuracy_full),
             ("full model, own classes only", "limited", phones.accuracy_full_limited),
             ("own model", "own", phones.accuracy)],
            whole=True,
        ),
        _histogram(
            "macs", "Computation", "MACs (full model: 100%)", "p",
            [("with escalation", "limited", phones.effective_macs_ratio),
             ("own model", "own", phones.macs_ratio)],
        ),
        _histogram("download", "Download", "bytes", "b", [("own model", "own", phones.download_bytes)]),
        _centroids(details),
        _kept(details),
        *_phase_bars(details),
    ]  # fmt: skip
    return [plot for plot in plots if plot is not None]


def _trade(summary: Summary) -> Plot | None:
    macs = summary.effective_macs_ratio or summary.macs_ratio
    points: list[tuple[str, str, str, float | None, Spread]] = [
        ("full model", "square", "quiet", 1.0, summary.accuracy.full),
        ("full model, own classes only", "diamond", "second", 1.0, summary.accuracy.full_limited),
        ("own model", "circle", "first", macs, summary.accuracy.personalised),
    ]
    if summary.cluster_only:
        only = summary.cluster_only
        points.insert(
            2, ("cluster's model", "triangle-up", "third", only.effective_macs_ratio or only.macs_ratio, only.accuracy)
        )
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [x],
            "y": [spread.mean],
            "marker": {"symbol": symbol, "size": 14, "color": colour},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [0],
                "arrayminus": [spread.mean - spread.p5 if spread.p5 is not None else 0],
                "color": colour,
                "thickness": 1.5,
            },
            "hovertemplate": "%{y:.1%} accuracy at %{x:.1%} of the MACs",
        }
        for name, symbol, colour, x, spread in points
        if x is not None and spread.mean is not None
    ]
    if not traces:
        return None
    title = {"text": "MACs (full model: 100%)", "font": {"size": 13}}
    layout = {
        "xaxis": {"title": title, "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"title": {"text": "accuracy", "font": {"size": 13}}, "tickformat": ".0%"},
    }
    note = "Up and to the left is better. The line below a mark reaches down to the 5th percentile of the phones."
    label = "Accuracy against computation; the numbers are in the table above."
    return Plot("trade", "Accuracy against computation", label, note, traces, layout, 340)


def _histogram(
    id: str,
    title: str,
    axis: str,
    unit: str,
    series: Sequence[tuple[str, str, Numbers]],
    whole: bool = False,
) -> Plot | None:
    """Outlines of histograms that share their bins, told apart by dash and name. Bins are counted here: a page with a
    million phones is as small as any. `whole`: the axis ends at 1.
    """
    arrays = [(name, style, _array(values)) for name, style, values in series]
    arrays = [(name, style, values) for name, style, values in arrays if values.size]
    if not arrays:
        return None
    every = np.concatenate([values for _, _, values in arrays])
    least, most = float(every.min()), float(every.max())
    low = min(math.floor(least * 10) / 10, 0.9) if whole else min(0.0, least)
    high = max(1.0, most) if whole else most * 1.02 or 1.0
    edges = np.linspace(low, high, 26)
    traces = []
    for name, style, values in arrays:
        colour, dash = _STYLES[style]
        counts = np.histogram(values, edges)[0].tolist()
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{name} (mean {percent(float(values.mean())) if unit == 'p' else size(float(values.mean()))})",
                "x": [float(edges[0]), *edges.tolist()],
                "y": [0, *counts, 0],
                "line": {"shape": "hv", "dash": dash, "width": 3 if style == "own" else 2, "color": colour},
                **({"fill": "tozeroy", "fillcolor": "wash"} if style == "own" else {}),
                "hovertemplate": "%{y} phones from %{x" + (":.0%" if unit == "p" else ":.3s") + "}",
            }
        )
    x: dict[str, Any] = {
        "title": {"text": axis, "font": {"size": 13}},
        "range": [low, high + (high - low) / 200],
        "tickformat": ".0%" if unit == "p" else ".3~s",
    }
    layout = {
        "xaxis": x | ({"ticksuffix": "B"} if unit == "b" else {}),
        "yaxis": {"title": {"text": "phones", "font": {"size": 13}}, "rangemode": "tozero", "tickformat": ",d"},
    }
    label = f"{title}: number of phones by {axis}; the quantiles are in the table below."
    return Plot(id, title, label, "", traces, layout, 320)


def _heat(
    id: str,
    title: str,
    label: str,
    note: str,
    values: list[list[float | None]],
    texts: list[list[str]],
    hover: list[list[str]],
    rows: list[str],
    columns: list[str],
    column_width: int,
) -> Plot:
    """A heat map with its values in the cells; rows from the top. Names are tick labels, so equal ones do not merge."""
    names = max((len(row) for row in rows), default=0)
    trace = {
        "type": "heatmap",
        "z": values,
        "zmin": 0,
        "text": texts,
        "texttemplate": "%{text}",
        "textfont": {"color": "ink", "size": 13},
        "hovertext": [[_plain(cell) for cell in row] for row in hover],
        "hoverinfo": "text",
        "colorscale": "scale",
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    slanted = max((len(column) for column in columns), default=0) * 7 > column_width
    layout = {
        "xaxis": {
            "tickvals": list(range(len(columns))),
            "ticktext": [_plain(column) for column in columns],
            "side": "top",
            "showgrid": False,
            "tickangle": -45 if slanted else 0,
            "automargin": True,
        },
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [_plain(row) + " " for row in rows],
            "autorange": "reversed",
            "showgrid": False,
            "automargin": True,
        },
        "margin": {"t": 24, "b": 8, "l": 8, "r": 8},
    }
    height = 60 + (60 if slanted else 10) + 28 * len(rows)
    return Plot(id, title, label, note, [trace], layout, height, 7 * names + 30 + column_width * len(columns))


def _centroids(details: Details) -> Plot | None:
    clusters = list({cluster.cluster: cluster for cluster in details.clusters if cluster.centroid}.values())
    if not clusters:
        return None
    shares = np.array([[share or 0.0 for share in cluster.centroid] for cluster in clusters])
    columns = np.arange(shares.shape[1])
    note = "Numbers are percent of a cluster's usage; empty cells are below half a percent."
    if columns.size > MAX_CLASSES:
        columns = np.sort(np.argsort(-shares.max(0), kind="stable")[:MAX_CLASSES])
        note += f" Of {shares.shape[1]} classes, the {MAX_CLASSES} with the largest shares are shown."
    shares = shares[:, columns]
    names = [details.class_names[column] for column in columns]
    return _heat(
        "centroids",
        "What each cluster's phones meet",
        "Heat map of class shares by cluster; the classes of each cluster are in the table below.",
        note,
        shares.tolist(),
        [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in shares],
        [
            [
                f"cluster {cluster.cluster}, {name}: {percent(float(share))}"
                for name, share in zip(names, row, strict=True)
            ]
            for cluster, row in zip(clusters, shares, strict=True)
        ],
        [f"cluster {cluster.cluster}" for cluster in clusters],
        [_short(name, 16) for name in names],
        36,
    )


def _kept(details: Details) -> Plot | None:
    clusters = [cluster for cluster in details.clusters if cluster.layers]
    if not clusters:
        return None
    groups = list(dict.fromkeys(layer.group for cluster in clusters for layer in cluster.layers))
    by = [{layer.group: layer for layer in cluster.layers} for cluster in clusters]
    found = [[layers.get(group) for layers in by] for group in groups]
    return _heat(
        "kept",
        "Kept filters by layer and cluster",
        "Heat map of kept filters by layer and cluster; the same numbers are in the tables below.",
        "Numbers are kept filters of all filters; the stronger a cell's colour, the more stay.",
        [[layer.kept / layer.channels if layer else None for layer in row] for row in found],
        [[f"{layer.kept}/{layer.channels}" if layer else "" for layer in row] for row in found],
        [
            [f"{layer.group}, cluster {c.name}: {layer.kept} of {layer.channels} filters" if layer else ""
             for layer, c in zip(row, clusters, strict=True)]
            for row in found
        ],
        [_short(group, 28) for group in groups],
        [cluster.name if len(clusters) > 8 else f"cluster {cluster.name}" for cluster in clusters],
        76,
    )  # fmt: skip


def _phase_bars(details: Details) -> list[Plot]:
    totals = _by_phase(details.phases)
    if not totals:
        return []
    names = [_plain(_short(total["phase"], 24)) for total in totals]
    rows = list(range(len(names)))
    axis = {
        "tickvals": rows, "ticktext": [f"{name} " for name in names], "autorange": "reversed",
        "automargin": True, "showgrid": False,
    }  # fmt: skip

    pattern = {"size": 6, "solidity": 0.25, "fgcolor": "page", "fillmode": "overlay"}

    def bars(name: str, key: str, colour: str, shape: str, words: Any) -> dict[str, Any]:
        values = [total[key] for total in totals]
        return {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": rows,
            "x": values,
            "text": [words(value) for value in values],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": colour, "pattern": pattern | {"shape": shape}},
            "hoverinfo": "text",
        }

    def room(*keys: str) -> list[float]:
        """Axis with room for the words behind the longest bar."""
        return [0, 1.4 * max(float(total[key]) for total in totals for key in keys) or 1.0]

    return [
        Plot(
            "bytes",
            "Bytes by phase, all phones and rounds",
            "Bars of bytes down and up by phase; the numbers are in the table of phases.",
            "Down: from the server to the phones. Up: from the phones to the server.",
            [bars("down", "bytes_down", "first", "", size), bars("up", "bytes_up", "second", "/", size)],
            {
                "xaxis": {"tickformat": ".3~s", "ticksuffix": "B", "range": room("bytes_down", "bytes_up")},
                "yaxis": axis,
                "barmode": "group",
            },
            100 + 52 * len(rows),
        ),
        Plot(
            "seconds",
            "Time by phase, all rounds",
            "Bars of seconds by phase; the numbers are in the table of phases.",
            "",
            [bars("seconds", "seconds", "first", "", duration)],
            {
                "xaxis": {"title": {"text": "seconds", "font": {"size": 13}}, "range": room("seconds")},
                "yaxis": axis,
                "showlegend": False,
            },
            80 + 34 * len(rows),
        ),
    ]


# --- atlas -------------------------------------------------------------------------------------------------------


def _atlas(path: Path, details: Details) -> tuple[list[GroupView], list[str]]:
    """Groups with their pictures, and the names of those that the page has no room for."""
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); check the permissions") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"{path} is damaged ({error}); visualise the filters again or delete it") from error
    groups: list[GroupView] = []
    left_out: list[str] = []
    room = MAX_SPRITES
    for name in _in_order([key.removeprefix("picture.") for key in tensors if key.startswith("picture.")], details):
        pictures = tensors[f"picture.{name}"]
        profile, family = tensors.get(f"profile.{name}"), tensors.get(f"cluster.{name}")
        filters = pictures.shape[0] if pictures.ndim == 4 else 0
        if (
            filters == 0
            or 0 in pictures.shape
            or pictures.dtype != np.uint8
            or (profile is not None and (profile.ndim != 2 or len(profile) != filters))
            or (family is not None and family.shape != (filters,))
        ):
            raise StateError(
                f"{path} is damaged (group {name}: pictures {pictures.dtype} {list(pictures.shape)} do not fit their "
                "profiles or clusters); visualise the filters again or delete it"
            )
        if len(groups) == MAX_GROUPS:
            left_out.append(name)
            continue
        shares = _shares(profile) if profile is not None else None
        chosen = _choose(filters, shares, family)
        png, aspect = _sprite(pictures[chosen])
        if len(png) > room:
            left_out.append(name)
            continue
        room -= len(png)
        views = [
            FilterView(
                int(index),
                int(family[index]) if family is not None else None,
                column,
                _top(shares[index], details) if shares is not None else [],
                _bars(shares[index]) if shares is not None and shares.shape[1] <= MAX_CLASSES else "",
            )
            for column, index in enumerate(chosen)
        ]
        sprite = "data:image/png;base64," + base64.b64encode(png).decode()
        groups.append(GroupView(name, views, filters, sprite, aspect))
    return groups, left_out


def _in_order(names: list[str], details: Details) -> list[str]:
    """Groups as the plans name them, which is the order of execution; then the others by name."""
    known = list(dict.fromkeys(layer.group for cluster in details.clusters for layer in cluster.layers))
    rank = {name: number for number, name in enumerate(known)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def _shares(profile: NDArray[Any]) -> Array:
    """Rows that sum to one, or to zero where a filter has no class."""
    values = np.clip(np.nan_to_num(profile.astype(np.float64), posinf=0, neginf=0), 0, None)
    total = values.sum(1, keepdims=True)
    shares: Array = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares


def _choose(filters: int, shares: Array | None, family: NDArray[Any] | None) -> NDArray[np.int64]:
    """At most `MAX_FILTERS` filters, by family and number: in turn from each family, those with the clearest class."""
    clear = shares.max(1) if shares is not None and shares.shape[1] else np.zeros(filters)
    families = family if family is not None else np.zeros(filters, dtype=np.int64)
    order = np.argsort(-clear, kind="stable")
    turn, seen = np.zeros(filters, dtype=np.int64), Counter[int]()
    for index in order:
        turn[index] = seen[int(families[index])]
        seen[int(families[index])] += 1
    chosen = np.lexsort((-clear, turn))[:MAX_FILTERS]
    return chosen[np.lexsort((chosen, families[chosen]))].astype(np.int64)


def _sprite(pictures: NDArray[np.uint8]) -> tuple[bytes, float]:
    """PNG of all pictures side by side, and width / height of one."""
    _, height, width, channels = pictures.shape
    if channels not in (1, 3):
        pictures = pictures.mean(-1, keepdims=True).round().astype(np.uint8)
    shrink = min(1.0, MAX_SIDE / max(height, width))
    side = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    sheet = Image.new("L" if pictures.shape[-1] == 1 else "RGB", (side[0] * len(pictures), side[1]))
    for column, picture in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if pictures.shape[-1] == 1 else picture))
        sheet.paste(image if shrink == 1 else image.resize(side, Image.Resampling.LANCZOS), (column * side[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), side[0] / side[1]


def _top(shares: Array, details: Details) -> list[tuple[str, float]]:
    best = np.argsort(-shares, kind="stable")[:3]
    return [(details.name(int(index)), float(shares[index])) for index in best if shares[index] > 0]


def _bars(shares: Array) -> str:
    """SVG path of a profile as bars, in a box 4 wide for each class and 20 high."""
    top = float(shares.max(initial=0.0))
    heights = [(place, 20 * share / top) for place, share in enumerate(shares.tolist())] if top > 0 else []
    return "".join(f"M{4 * place} 20v-{height:.1f}h3v{height:.1f}z" for place, height in heights if height >= 0.4)
