"""Run `fedcaptor simulate` and `report`: simulated populations, and the pages and tables of what came out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import fedcaptor
from fedcaptor.cli.options import AsJson, Overrides

app = typer.Typer()
console = Console(stderr=True)


class Engine(StrEnum):
    """Choose what carries the messages between server and simulated phones."""

    local = "local"
    ray = "ray"


@app.command()
def simulate(
    scenario: Annotated[
        str | None, typer.Argument(help="TOML file, or the name of a shipped scenario, for example demo.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same one again resumes it.")] = Path(
        "runs/simulation"
    ),
    data: Annotated[str | None, typer.Option(help="Short for --set data.source=…")] = None,
    weights: Annotated[Path | None, typer.Option(help="Short for --set model.weights=…")] = None,
    engine: Annotated[Engine, typer.Option(help="local: this process; ray: Flower's own simulation.")] = Engine.local,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Phones that answer at the same time (local). Default: one for each core.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="A sweep: one run a seed, such as 0..4 or 0,3,7, into OUT/seed-N.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove an earlier run in the folder first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Many simulated phones find out their classes privately and get their own pruned submodels.

    Writes summary.json, details.json, rounds.csv, report.html, state.db and the phones' folders into --out. With
    --seeds it writes sweep.json, rounds.csv and report.html of all runs. Ctrl-C stops after the phase in flight is
    given up; the same command goes on from there.
    """
    from fedcaptor.simulations.run_lock import refuse_if_in_use

    refuse_if_in_use(out, seeds)  # before anything heavy is loaded, as the tables do
    from fedcaptor.cli.tables import summary_table, sweep_table

    chosen = list(overrides or [])
    if data is not None:
        chosen.append(f"data.source={json.dumps(data)}")
    if weights is not None:
        chosen.append(f"model.weights={json.dumps(str(weights.resolve()))}")
    try:
        run = fedcaptor.simulate(
            scenario, chosen, seeds=seeds, out=out, engine=engine.value, workers=workers, fresh=fresh
        )
    except KeyboardInterrupt:  # typer would end here with the same code, without a word
        console.print("interrupted: the same command goes on from the last finished phase", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(run.record))
        return
    Console().print(sweep_table(out.name, run.record) if run.is_sweep else summary_table({out.name: run.record}))
    Console().print(f"report: {out / 'report.html'}", highlight=False)


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, shown side by side, or of sweeps.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Page of several folders side by side; comparison.html beside the first where not given."),
    ] = None,
) -> None:
    """Write the report page of finished runs and sweeps again and print their tables.

    Of several, a page that compares them is written as well.
    """
    from fedcaptor._simulation import compare
    from fedcaptor.cli.tables import summary_table, sweep_table

    runs = [fedcaptor.Run.open(directory) for directory in directories]
    pages = [run.report() for run in runs]
    tables = [sweep_table(run.folder.name, fedcaptor.Run.open(run.folder).record) for run in runs if run.is_sweep]
    if single := {run.folder.name: run.record for run in runs if not run.is_sweep}:
        tables.append(summary_table(single))
    for table in tables:
        Console().print(table)
    for page in pages:
        Console().print(f"report: {page}", highlight=False, soft_wrap=True)
    if len(directories) > 1:
        Console().print(f"comparison: {compare(directories, out)}", highlight=False, soft_wrap=True)
