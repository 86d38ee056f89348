"""Heat maps with their values in the cells: class shares by cluster, kept filters by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedcaptor.simulations.records import Details, Layer
from fedcaptor.simulations.report.plot import Plot
from fedcaptor.simulations.report.words import percent, plain, short

MAX_CLASSES = 60  # rows of a heat map


@dataclass(frozen=True)
class Cells:
    """`values` from 0 to `most` for the colour (None: empty), `texts` in the cells, `hover` over them; all of
    [rows, columns].
    """

    values: list[list[float | None]]
    texts: list[list[str]]
    hover: list[list[str]]
    most: float = 1.0


def heat(
    id: str, title: str, label: str, note: str, cells: Cells, rows: list[str], columns: list[str], column_width: int
) -> Plot:
    """Rows from the top. Names are tick labels, so equal ones do not merge."""
    trace = {
        "type": "heatmap",
        "z": cells.values,
        "zmin": 0,
        "zmax": cells.most,
        "text": cells.texts,
        "texttemplate": "%{text}",
        "textfont": {"color": "ink", "size": 13},
        "hovertext": [[plain(cell) for cell in row] for row in cells.hover],
        "hoverinfo": "text",
        "colorscale": "scale",
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    slanted = max((len(column) for column in columns), default=0) * 7 > column_width
    ticks = {"showgrid": False, "automargin": True}
    x = {"tickvals": list(range(len(columns))), "ticktext": [plain(column) for column in columns], "side": "top"}
    y = {"tickvals": list(range(len(rows))), "ticktext": [f"{plain(row)} " for row in rows], "autorange": "reversed"}
    layout = {
        "xaxis": {**ticks, **x, "tickangle": -45 if slanted else 0},
        "yaxis": {**ticks, **y},
        "margin": {"t": 24, "b": 8, "l": 8, "r": 8},
    }
    height = 60 + (60 if slanted else 10) + 28 * len(rows)
    names = max((len(row) for row in rows), default=0)
    return Plot(id, title, label, note, [trace], layout, height, 7 * names + 30 + column_width * len(columns))


def centroids(details: Details) -> Plot | None:
    """Class shares of each cluster; at most `MAX_CLASSES` classes."""
    clusters = list({cluster.cluster: cluster for cluster in details.clusters if cluster.centroid}.values())
    if not clusters:
        return None
    shares = np.array([[share or 0.0 for share in cluster.centroid] for cluster in clusters])
    shown = np.arange(shares.shape[1])
    note = "Numbers are percent of a cluster's usage; empty cells are below half a percent. Columns are clusters."
    if shown.size > MAX_CLASSES:
        shown = np.sort(np.argsort(-shares.max(0), kind="stable")[:MAX_CLASSES])
        note += f" Of {shares.shape[1]} classes, the {MAX_CLASSES} with the largest shares are shown."
    shares = shares[:, shown].T
    names = [details.class_names[number] for number in shown]
    cells = Cells(
        shares.tolist(),
        [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in shares],
        [
            [
                f"cluster {cluster.cluster}, {name}: {percent(float(share))}"
                for cluster, share in zip(clusters, row, strict=True)
            ]
            for name, row in zip(names, shares, strict=True)
        ],
        float(shares.max()) or 1.0,
    )
    title = "What each cluster's phones meet"
    label = "Heat map of class shares by cluster; the classes of each cluster are in the table below."
    columns = [str(cluster.cluster) for cluster in clusters]
    return heat("centroids", title, label, note, cells, [short(name, 16) for name in names], columns, 36)


def kept(details: Details) -> Plot | None:
    """Kept filters of each layer (rows) and cluster (columns)."""
    clusters = [cluster for cluster in details.clusters if cluster.layers]
    if not clusters:
        return None
    groups = details.groups
    by = [{layer.group: layer for layer in cluster.layers} for cluster in clusters]
    found: list[list[Layer | None]] = [[layers.get(group) for layers in by] for group in groups]
    cells = Cells(
        [[layer.kept / layer.channels if layer else None for layer in row] for row in found],
        [[f"{layer.kept}/{layer.channels}" if layer else "" for layer in row] for row in found],
        [
            [
                f"{layer.group}, cluster {cluster.name}: {layer.kept} of {layer.channels} filters" if layer else ""
                for layer, cluster in zip(row, clusters, strict=True)
            ]
            for row in found
        ],
    )
    return heat(
        "kept",
        "Kept filters by layer and cluster",
        "Heat map of kept filters by layer and cluster; the same numbers are in the tables below.",
        "Numbers are kept filters of all filters; the stronger a cell's colour, the more stay. Columns are clusters.",
        cells,
        [short(group, 28) for group in groups],
        [cluster.name for cluster in clusters],
        52,
    )
