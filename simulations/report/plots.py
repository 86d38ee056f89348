"""Figures for Plotly, drawn by the page. Colours are names of the page's theme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedcaptor.simulations.records import Details, Number, RoundAccuracy, Spread, Summary
from fedcaptor.simulations.report.heatmaps import centroids, kept
from fedcaptor.simulations.report.histograms import out_of_set, phone_plots
from fedcaptor.simulations.report.plot import Plot, axis_title
from fedcaptor.simulations.report.tables import Totals, by_phase
from fedcaptor.simulations.report.words import duration, plain, short, size


def plots_of(summary: Summary, details: Details) -> list[Plot]:
    """All figures that the run has numbers for."""
    plots = [
        trade(summary),
        by_round(summary.accuracy_by_round),
        *phone_plots(details.phones),
        out_of_set(details.scores),
        centroids(details),
        kept(details),
        *phase_bars(details),
    ]
    return [plot for plot in plots if plot is not None]


def trade(summary: Summary) -> Plot | None:
    """One mark for each model."""
    accuracy, only = summary.accuracy, summary.cluster_only
    points: list[tuple[str, str, str, Number, Spread]] = [
        ("full model", "square", "quiet", 1.0, accuracy.full),
        ("full model, own classes only", "diamond", "second", 1.0, accuracy.full_limited),
    ]
    if only:
        macs = only.effective_macs_ratio or only.macs_ratio
        points.append(("cluster's submodel", "triangle-up", "third", macs, only.accuracy))
    points.append(("own submodel alone", "circle-open", "first", summary.macs_ratio, accuracy.submodel))
    macs = summary.effective_macs_ratio or summary.macs_ratio
    points.append(("with escalations", "circle", "first", macs, accuracy.personalised))
    traces = [_mark(*point) for point in points if point[3] is not None and point[4].mean is not None]
    if not traces:
        return None
    layout = {
        "xaxis": {"title": axis_title("effective MACs (full model: 100%)"), "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"title": axis_title("accuracy"), "tickformat": ".0%"},
    }
    note = (
        "Up and to the left is better. The line below a mark reaches down to the 5th percentile of the phones. "
        "Effective MACs are those of a phone's model and, for each escalated image, of the larger one that answers it."
    )
    label = "Accuracy against computation; the numbers are in the table above."
    return Plot("trade", "Accuracy against computation", label, note, traces, layout, 340)


def by_round(rounds: Sequence[RoundAccuracy]) -> Plot | None:
    """Accuracy after each round, of runs with several rounds."""
    if len(rounds) < 2:
        return None
    lines = (
        ("full model", "quiet", "dot", [each.full for each in rounds]),
        ("own submodel alone", "third", "dashdot", [each.submodel for each in rounds]),
        ("with escalations", "first", "solid", [each.personalised for each in rounds]),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": [each.round for each in rounds],
            "y": values,
            "line": {"color": colour, "dash": dash, "width": 2},
            "hovertemplate": "%{y:.1%} after round %{x}",
        }
        for name, colour, dash, values in lines
    ]
    layout = {
        "xaxis": {"title": axis_title("round"), "dtick": max(1, len(rounds) // 10)},
        "yaxis": {"title": axis_title("accuracy"), "tickformat": ".1~%"},
    }
    label = "Accuracy after each round; the numbers are in the table of rounds."
    return Plot("rounds", "Accuracy after each round", label, "", traces, layout)


def _mark(name: str, symbol: str, colour: str, x: Number, spread: Spread) -> dict[str, Any]:
    mean = spread.mean or 0.0
    down = {"array": [0], "arrayminus": [mean - spread.p5 if spread.p5 is not None else 0], "symmetric": False}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x],
        "y": [spread.mean],
        "marker": {"symbol": symbol, "size": 14, "color": colour},
        "error_y": {"type": "data", "color": colour, "thickness": 1.5, **down},
        "hovertemplate": "%{y:.1%} accuracy at %{x:.1%} of the effective MACs",
    }


def phase_bars(details: Details) -> list[Plot]:
    """Bytes and seconds by phase, over all rounds."""
    totals = by_phase(details.phases)
    plots: list[Plot] = []
    layout: dict[str, Any]
    if talking := [total for total in totals if total.bytes_down or total.bytes_up]:
        down = _bars("down", [total.bytes_down for total in talking], "first", "", size)
        up = _bars("up", [total.bytes_up for total in talking], "second", "/", size)
        x = {"tickformat": ".3~s", "ticksuffix": "B", "range": _room(down["x"] + up["x"])}
        title = "Bytes by phase, all phones and rounds"
        note = "Down: from the server to the phones. Up: from the phones to the server."
        layout = {"xaxis": x, "yaxis": _phase_axis(talking), "barmode": "group"}
        label = "Bars of bytes down and up by phase; the numbers are in the table of phases."
        plots.append(Plot("bytes", title, label, note, [down, up], layout, 100 + 52 * len(talking)))
    if totals:
        seconds = _bars("seconds", [total.seconds for total in totals], "first", "", duration)
        axis = {"title": axis_title("seconds"), "range": _room(seconds["x"])}
        layout = {"xaxis": axis, "yaxis": _phase_axis(totals), "showlegend": False}
        label = "Bars of seconds by phase; the numbers are in the table of phases."
        plots.append(Plot("seconds", "Time by phase, all rounds", label, "", [seconds], layout, 80 + 34 * len(totals)))
    return plots


def _phase_axis(totals: list[Totals]) -> dict[str, Any]:
    names = [f"{plain(short(total.phase, 24))} " for total in totals]
    places = list(range(len(names)))
    return {"tickvals": places, "ticktext": names, "autorange": "reversed", "automargin": True, "showgrid": False}


def _room(values: list[float]) -> list[float]:
    """Range of an axis with room for the words behind the longest bar."""
    return [0, 1.4 * max(values) or 1.0]


def _bars(name: str, values: list[float], colour: str, shape: str, show: Callable[[float], str]) -> dict[str, Any]:
    pattern = {"size": 6, "solidity": 0.25, "fgcolor": "page", "fillmode": "overlay", "shape": shape}
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(range(len(values))),
        "x": values,
        "text": [show(value) for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": colour, "pattern": pattern},
        "hoverinfo": "text",
    }
