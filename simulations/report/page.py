"""One self-contained HTML page of a simulated run: no network, readable without scripts, colour or a mouse.

Reads `summary.json` and `details.json` and, when there, `atlas.safetensors` of a run directory. All text from these
files is data: it is escaped in the page and in the plots, and the page's policy lets only its own scripts run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedcaptor.common import energy
from fedcaptor.common.assets import asset
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing
from fedcaptor.simulations.records import ATLAS, DETAILS, PHONES, REPORT, SUMMARY, Details, Summary, read
from fedcaptor.simulations.report import words
from fedcaptor.simulations.report.atlas import MAX_FILTERS, read_atlas
from fedcaptor.simulations.report.plot import Plot
from fedcaptor.simulations.report.plots import plots_of
from fedcaptor.simulations.report.tables import by_phase, gains, marks_of, quantiles, rest_of_macs

MAX_ROWS = 300  # of the tables of rounds and phases

_TEMPLATES = asset("simulations/report/templates")


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run directory. Raises StateError that names a missing or damaged file."""
    summary = read(directory / SUMMARY, Summary)
    details = read(directory / DETAILS, Details)
    atlas, left_out = read_atlas(directory / ATLAS, details)
    values = {
        "name": directory.resolve().name,
        "has_phones": (directory / PHONES).exists(),
        "summary": summary,
        "energy_model": energy.MODEL,
        "details": details,
        "marks": marks_of(summary),
        "kept_full": sum(ratio == 1 for ratio in details.phones.macs_ratio),
        "rest_of_macs": rest_of_macs(details.clusters),
        "max_rows": MAX_ROWS,
        "quantiles": quantiles(details.phones),
        "gains": gains(details.phones),
        "faults": words.flat(summary.faults or {}),
        "sums_note": words.words(summary.privacy.sums) if summary.privacy else "",
        "rounds": details.rounds[-MAX_ROWS:],
        "phases": details.phases[-MAX_ROWS:],
        "by_phase": by_phase(details.phases),
        "atlas": atlas,
        "atlas_left_out": left_out,
        "max_filters": MAX_FILTERS,
    }
    return write_page(directory / REPORT, "report.html.j2", plots_of(summary, details), values)


def write_page(path: Path, template: str, plots: Sequence[Plot], values: dict[str, Any]) -> Path:
    """Render a template with its plots and Plotly itself. Raises StateError when the file cannot be written."""
    page = (
        _environment()
        .get_template(template)
        .render(
            values,
            plots={plot.id: plot for plot in plots},
            drawings=[{"id": p.id, "traces": p.traces, "layout": p.layout, "height": p.height} for p in plots],
            plotly=Markup(get_plotlyjs().replace("\r\n", "\n")) if plots else "",
        )
    )
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StateError(f"{path} cannot be written ({error.strerror}); check the disk and the permissions") from error
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for show in (words.percent, words.size, words.duration, words.number, words.count, words.words, words.moment):
        environment.filters[show.__name__] = show
    environment.filters["policy_hash"] = _policy_hash
    environment.filters["labelled"] = labelled
    return environment


def labelled(table: Markup) -> Markup:
    """A table whose cells name their columns, as `data-label`: narrow screens show a row as a card without a header."""
    head, body, rest = str(table).partition("<tbody>")
    names = re.findall(r"<th [^>]*>(.*?)</th>", head)

    def row(found: re.Match[str]) -> str:
        left = iter(names)
        return re.sub(r"<t[hd]", lambda cell: f'{cell[0]} data-label="{next(left, "")}"', found[0])

    return Markup(head + body + re.sub(r"<tr.*?</tr>", row, rest, flags=re.DOTALL))


def _policy_hash(script: str) -> str:
    """What the page's policy allows `script` by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
