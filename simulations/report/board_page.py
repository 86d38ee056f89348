"""The dashboards as pages of their own, with what a Prometheus has: for those without Grafana."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.server.panels import BOARDS, Board, Panel, Query, Unit
from fedcaptor.simulations.report.page import write_page
from fedcaptor.simulations.report.plot import Plot
from fedcaptor.simulations.report.words import plain, short

POINTS = 240
"""Points of a line at most."""
SERIES = 24
"""Lines of a panel at most; the first by name."""
MAX_BYTES = 1 << 26
RATE = "1m"
"""What stands for Grafana's `$__rate_interval`."""
_COLOURS = ("first", "second", "third", "quiet")
_DASHES = ("solid", "dash", "dot", "dashdot")
_AXES: Mapping[Unit, dict[str, Any]] = {
    "ratio": {"tickformat": ".0%"},
    "bytes": {"tickformat": ".3~s", "ticksuffix": "B"},
    "bytes per second": {"tickformat": ".3~s", "ticksuffix": "B/s"},
    "seconds": {"ticksuffix": " s"},
    "days": {"ticksuffix": " d"},
    "per second": {"ticksuffix": "/s"},
}

Series = tuple[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Prometheus:
    """Ask the Prometheus at `url` (`http://host:port`). Raises ConfigError for another address."""

    url: str

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+", self.url):
            raise ConfigError(f"the address of Prometheus is {self.url!r}, must begin with http:// or https://")

    def ask(self, path: str, **parameters: object) -> Any:
        """Return the data of an answer of the HTTP API. Raises StateError that says what went wrong."""
        address = f"{self.url.rstrip('/')}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as reply:
                return json.loads(reply.read(MAX_BYTES))["data"]
        except urllib.error.HTTPError as error:
            raise StateError(f"Prometheus refuses {parameters.get('query')!r}: {error.read(500).decode()}") from error
        except (OSError, ValueError, KeyError) as error:
            raise StateError(
                f"{self.url} does not answer as Prometheus does ({error}): start it, or correct it"
            ) from error

    def series(self, query: Query, start: float, end: float, run: str = ".*") -> list[Series]:
        """Return the lines of a query between two times in unix seconds, by name."""
        step = max(math.ceil((end - start) / POINTS), 1)
        found = self.ask("query_range", query=filled(query.expr, run), start=start, end=end, step=step)["result"]
        named = [(_named(query.legend, one["metric"]), [(at, float(v)) for at, v in one["values"]]) for one in found]
        return sorted(named)


def filled(expression: str, run: str = ".*") -> str:
    """Return an expression with a dashboard's variables filled in."""
    return expression.replace("$run", run).replace("$__rate_interval", RATE)


def write_board_pages(folder: Path, prometheus: Prometheus, hours: float = 24.0) -> list[Path]:
    """Write a page for each dashboard with the last hours, and return them. Raises StateError where that fails."""
    end = time.time()
    return [_write(folder / f"{board.uid}.html", board, prometheus, end - 3600 * hours, end) for board in BOARDS]


def _write(path: Path, board: Board, prometheus: Prometheus, start: float, end: float) -> Path:
    sections, plots = [], []
    for section in board.sections:
        drawn = [plot for panel in section.panels if (plot := _plot(panel, prometheus, start, end))]
        empty = [panel.title for panel in section.panels if not any(panel.title == plot.title for plot in drawn)]
        sections.append({"title": section.title, "ids": [plot.id for plot in drawn], "empty": empty})
        plots += drawn
    times = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in (start, end)]
    values = {"board": board, "sections": sections, "start": times[0], "end": times[1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(path, "board.html.j2", plots, values)


def _plot(panel: Panel, prometheus: Prometheus, start: float, end: float) -> Plot | None:
    """Draw a panel; None where there is nothing to draw."""
    lines = [(query, one) for query in panel.queries for one in prometheus.series(query, start, end)]
    if not lines:
        return None
    shown = [one for query, one in lines if not query.bound]
    places = {name: number for number, (name, _) in enumerate(shown[:SERIES])}
    traces = [
        _state(one, places[one[0]]) if panel.unit == "state" else _line(one, places[one[0]]) for one in shown[:SERIES]
    ]
    # A bound is called as the run whose figure it belongs to, and what it is.
    traces += [_bound(one, places.get(one[0].partition(" ")[0], 3)) for query, one in lines if query.bound]
    axis = {"automargin": True} if panel.unit == "state" else dict(_AXES.get(panel.unit, {}))
    layout = {"xaxis": {"type": "date"}, "yaxis": axis, "showlegend": panel.unit != "state"}
    id = re.sub(r"[^a-z0-9]+", "-", panel.title.lower()).strip("-") or "epsilon"
    left_out = f" {len(shown) - SERIES} lines are left out." if len(shown) > SERIES else ""
    return Plot(id, panel.title, f"{panel.title} over time.", panel.text + left_out, traces, layout, 300)


def _line(line: Series, number: int) -> dict[str, Any]:
    name, points = line
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(short(name, 32)),
        "x": [datetime.fromtimestamp(at, UTC).isoformat() for at, _ in points],
        "y": [value if math.isfinite(value) else None for _, value in points],
        "line": {"color": _COLOURS[number % 4], "dash": _DASHES[number // 4 % 4], "width": 2},
    }


def _bound(line: Series, number: int) -> dict[str, Any]:
    drawn = _line(line, number)
    return drawn | {"line": drawn["line"] | {"dash": "dot", "width": 1}, "showlegend": False}


def _state(line: Series, number: int) -> dict[str, Any]:
    """Draw a row of its own: a mark for each time at which the state was."""
    drawn = _line(line, number)
    mark = {"symbol": "square", "color": drawn["line"]["color"]}
    return drawn | {"mode": "markers", "y": [drawn["name"]] * len(line[1]), "marker": mark}


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{\s*(\w+)\s*}}", lambda found: labels.get(found[1], ""), legend)
