"""Grafana dashboards, made from `server/panels.py` with Grafana's own builders: JSON that Grafana loads."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, prometheus, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    VariableRefresh,
    VariableSort,
)

from fedcaptor.common.files import write_whole
from fedcaptor.server.panels import BOARDS, Board, Panel, Query

UNITS = {
    "count": "short",
    "ratio": "percentunit",
    "seconds": "s",
    "days": "none",
    "bytes": "bytes",
    "bytes per second": "Bps",
    "per second": "none",
    "state": "short",
}
"""Grafana's names of units."""

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHT, _SPAN = 8, 6


def write_dashboards(folder: Path) -> list[Path]:
    """Write the JSON of all dashboards into a folder; returns the files."""
    files = []
    for board in BOARDS:
        path = folder / f"{board.uid}.json"
        write_whole(path, json_of(board).encode())
        files.append(path)
    return files


def json_of(board: Board) -> str:
    """Return a dashboard as Grafana's JSON."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard_of(board)) + "\n"


def dashboard_of(board: Board) -> Dashboard:
    """Make a dashboard with a choice of data source and of runs."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["fedcaptor"])
        .refresh("30s")
        .time("now-24h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(_SOURCE)
            .query("label_values(fedcaptor_run_start_timestamp_seconds, run)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    )
    number = 0
    for section in board.sections:
        number += 1
        made = made.with_row(dashboard.Row(section.title).id(number))
        for panel in section.panels:
            number += 1
            made = made.with_panel(_panel(panel).id(number))
    return made.build()


def _panel(panel: Panel) -> timeseries.Panel | statetimeline.Panel:
    made: timeseries.Panel | statetimeline.Panel
    if panel.unit == "state":
        made = statetimeline.Panel().show_value(VisibilityMode.NEVER).line_width(0).fill_opacity(70)
    else:
        made = (
            timeseries.Panel()
            .unit(UNITS[panel.unit])
            .draw_style(GraphDrawStyle.LINE)
            .line_width(2)
            .fill_opacity(0)
            .span_nulls(600_000)  # milliseconds: scrapes that failed
            .tooltip(options.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        )
        if any(query.bound for query in panel.queries):
            thin = [DynamicConfigValue(id_val="custom.lineWidth", value=1),
                    DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [4, 4]})]  # fmt: skip
            made = made.override_by_regexp("/(2σ|allowed)$/", thin)
    made = made.title(panel.title).description(panel.text).datasource(_SOURCE).height(_HEIGHT).span(_SPAN)
    legend = options.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    made = made.legend(legend.show_legend(True))
    for number, query in enumerate(panel.queries):
        made = made.with_target(_target(query, "ABCDEFGH"[number]))
    return made


def _target(query: Query, name: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(name).range()
