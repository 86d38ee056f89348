"""Run `fedcaptor privacy`, which tells what a run would cost before it runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedcaptor.cli.options import AsJson, Overrides

if TYPE_CHECKING:
    from fedcaptor.common.config import Config
    from fedcaptor.common.groups import ChannelGroups
    from fedcaptor.server.local_plan import LocalPlan
    from fedcaptor.server.privacy_plan import PrivacyPlan

app = typer.Typer(help="Plan a run's privacy before it is run.")


@app.callback()
def _group() -> None:
    """Keep `plan` a sub-command: without this typer would make it the whole command."""


@app.command()
def plan(
    scenario: Annotated[Path | None, typer.Argument(help="TOML file; the defaults without one.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show every sum of a run: its noise, its price, how precise it is and how many phones would be enough.

    With `privacy.sums=local` it shows the one answer of each phone, and masked sums beside it. Configuration and model
    alone are read: nothing is run.
    """
    from fedcaptor.common.config import load_config
    from fedcaptor.server import local_plan, privacy_plan

    config = load_config(scenario, overrides or [])
    found: PrivacyPlan | LocalPlan
    if config.privacy.sums == "local":
        found = local_plan.plan_local_answers(config, groups_of(config))
        tables = [answer_table(found), local_table(found)]
    else:
        found = privacy_plan.plan_sums(config, groups_of(config))
        tables = [price_table(found), precision_table(found), totals_table(found)]
    if as_json:
        print(json.dumps(_finite(asdict(found))))
        return
    for table in tables:
        Console().print(table)


def groups_of(config: Config) -> ChannelGroups:
    """Return the channel groups of a scenario's model; its weights are read only where they are given."""
    from fedcaptor.common.data.source import load
    from fedcaptor.common.torch_engine.base import BaseModel
    from fedcaptor.common.torch_engine.registry import build
    from fedcaptor.common.torch_engine.trace import trace

    data = load(config.data.source)
    _, height, width, channels = data.x.shape
    name, shape = config.model.name, (channels, height, width)
    if config.model.weights:
        return BaseModel.load(Path(config.model.weights), name, shape).groups
    return trace(build(name, len(data.names), shape), name, shape)


def price_table(found: PrivacyPlan) -> Table:
    """Tabulate what each sum is and costs."""
    table = Table(title=f"{found.cohort} phones, {found.clusters} clusters to begin with")
    table.caption = "noise: standard deviation of the whole sum's, over clip"
    for column in ("sum", "entries", "bits", "clip", "noise", "ρ", "ε alone", "ε so far"):
        table.add_column(column, no_wrap=True)
    for one in found.sums:
        figures = (_number(one.rho), _number(one.epsilon), _number(one.composed))
        table.add_row(
            one.name, f"{one.length:,}", str(one.bits), f"{one.clip:.3g}", f"{one.noise_multiplier:.3g}", *figures
        )
    return table


def precision_table(found: PrivacyPlan) -> Table:
    """Tabulate what the noise does to the figures made from each sum."""
    table = Table(title="standard deviation by noise, and the phones that make it small enough")
    for column in ("sum", "deviation", "of", "phones for"):
        table.add_column(column, no_wrap=column != "of")
    for one in found.sums:
        table.add_row(one.name, f"{one.deviation:.2g}", one.unit, f"{one.target:g}: {one.phones:,}")
    return table


def totals_table(found: PrivacyPlan) -> Table:
    """Tabulate what the sums come to together."""
    table = Table("", "", show_header=False)
    of = "the run" if found.rounds is None else f"any 90 days, {found.rounds} rounds with the first"
    table.add_row(f"ε of {of}", f"{_number(found.epsilon)} at δ = {found.delta:g}")
    if found.later is not None:
        table.add_row("rounds within 90 days that fit later", f"{found.later}")
    if found.reserve:
        table.add_row(f"ε with {found.reserve} of its sums repeated", _number(found.epsilon_reserve))
    for share, value in found.dishonest.items():
        table.add_row(f"ε if {100 * share:g} % of the phones leave out their noise", _number(value))
    table.add_row(f"ε of a year, {found.periods} periods spent whole", _number(found.year))
    table.add_row("fewest replies of a sum", f"{found.survivors}")
    table.add_row("smallest cluster that is published", f"{found.smallest:.0f} phones by a noisy count")
    table.add_row("marks", ", ".join(found.marks))
    return table


def answer_table(found: LocalPlan) -> Table:
    """Tabulate how each phone protects its answer."""
    table = Table("", "", show_header=False, title=f"one answer of each of {found.cohort:,} phones")
    table.add_row("bits, one for each pair of classes", f"{found.length:,}")
    table.add_row("the own pair's bit is one", f"with probability {found.present:.4g}")
    table.add_row("any other bit is one", f"with probability {found.absent:.4g}")
    table.add_row(f"ε of a year, an answer in each of {found.periods} periods", f"{found.year:.3g} at δ = 0")
    table.add_row("filter scores, fleet figures", "not collected")
    table.add_row("smallest cluster that is published", f"{found.smallest:.0f} phones by a noisy count")
    table.add_row("marks", ", ".join(found.marks))
    return table


def local_table(found: LocalPlan) -> Table:
    """Tabulate local answers beside masked sums, for `found.clusters` clusters."""
    title = f"share of a class in a cluster's usage, {found.clusters} clusters to begin with"
    table = Table("", "local answers", "masked sums", title=title)
    masked = found.masked
    figures = (f"{masked.deviation:.2g}", f"{masked.phones:,}") if masked else ("–", "–")
    price = f"{_number(masked.epsilon)} at δ = {masked.delta:g}, with scores and fleet figures" if masked else "–"
    table.add_row("ε", f"{found.epsilon:.3g} at δ = 0", price)
    table.add_row("rests on", "the phone alone", "masks, and most phones of a cohort" if masked else found.masked_error)
    table.add_row("standard deviation", f"{found.deviation:.2g}", figures[0])
    table.add_row(f"phones for {found.target:g}", f"{found.phones_for:,}", figures[1])
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "no noise"
    return f"{value:.3g}" if math.isfinite(value) else "no bound"


def _finite(value: Any) -> Any:
    """Replace infinity by None, as JSON has none."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and math.isinf(value) else value
