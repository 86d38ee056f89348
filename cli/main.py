"""Run the `fedcaptor` command: options and printing over the Python interface."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import fedcaptor
from fedcaptor._extras import explained
from fedcaptor.cli.options import AsJson, ModelName, Overrides, Source, Weights, formerly
from fedcaptor.cli.phone import app as phone
from fedcaptor.cli.privacy import app as privacy
from fedcaptor.cli.service import app as service

app = typer.Typer(
    help="Make CNNs smaller for the classes that matter. Start with `fedcaptor prune --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(phone, name="phone", no_args_is_help=True)
app.add_typer(privacy, name="privacy", no_args_is_help=True)
app.add_typer(service)
console = Console(stderr=True)


class Engine(StrEnum):
    """Choose what carries the messages between server and simulated phones."""

    local = "local"
    ray = "ray"


@app.command(cls=formerly("--model"))
def train(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="File to write.")],
    data: Source = "embedded",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the base part of the data.")] = 12,
    seed: int = 0,
) -> None:
    """Train a base model on the data's base part; its accuracy on the other parts goes into the file."""
    fedcaptor.train(model, data, out=out, epochs=epochs, seed=seed)


@app.command()
def inspect(
    model: ModelName,
    weights: Annotated[
        Path | None, typer.Option(help="Weights as safetensors; random ones if left out, to look before training.")
    ] = None,
    data: Source = "embedded",
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure each layer's milliseconds here: one image, one thread.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's channel groups, what each layer costs, and what `prune` keeps whole or refuses."""
    from fedcaptor._inspection import inspect_files

    found = inspect_files(model, weights, data, latency)
    if as_json:
        print(json.dumps(found.record(), allow_nan=False))
        return
    groups = Table("group", "channels", "producers", "read by", title=found.title)
    for group in found.rows:
        groups.add_row(*group)
    layers = Table(*found.cost_columns)
    for row in found.cost_rows:
        layers.add_row(*row)
    Console().print(groups, layers)
    for line in found.kept_whole:
        Console().print(f"prune keeps {line}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def prune(
    model: ModelName,
    weights: Weights,
    classes: Annotated[str, typer.Option(help="Target classes by label, for example 3,5.")],
    data: Source = "embedded",
    macs: Annotated[
        str | None,
        typer.Option(
            help="MACs to keep, as a ratio of the full model; 0.4 where nothing else is given. Several, such as "
            "0.5,0.3,0.1, are compared."
        ),
    ] = None,
    parameters: Annotated[float | None, typer.Option(help="Parameters to keep, as a ratio of the full model.")] = None,
    size: Annotated[int | None, typer.Option("--bytes", help="Most bytes of the submodel's file.")] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            help="Time of one image to keep, as a ratio of the full model's, by a table of each layer's seconds. MACs "
            "are not time: layers that are slow for their MACs give more. The table is read from WEIGHTS.latency.json; "
            "without that file it is measured here on one thread and written there (half a minute for VGG-16). Measure "
            "on an idle machine of the kind that will run the submodel; remove the file to measure again."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Smallest submodel within the other budgets that disagrees on at most this share."
        ),
    ] = None,
    calibration: Annotated[int, typer.Option(min=1, help="Unlabelled images per class that the engine sees.")] = 50,
    strategy: Annotated[
        str,
        typer.Option(
            help="reconstruct: remove what other channels can stand in for. For comparison: reconstruct-agnostic (told "
            "nothing about classes), reconstruct-fisher (an error between two classes counts by how likely both are), "
            "captor (clusters of filters that prefer other than the target classes), taylor, l1, random. Or your own, "
            "package.module:object."
        ),
    ] = "reconstruct",
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate", help="Measure batch-norm statistics again; helps strategies other than reconstruct."
        ),
    ] = False,
    tune_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Learn so many steps, three minutes at most, from the full model's answers on further reference "
            "images of the classes; a part of them is held out, and what is nearest to the full model there is kept. "
            "0: no training.",
        ),
    ] = 0,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            help="File to write, may be repeated. The ending says what: .safetensors (weights), "
            ".pt2 (a program for PyTorch alone) or .onnx (for ONNX Runtime; needs the extra onnx)."
        ),
    ] = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Make one model physically smaller for one set of classes: no federation, and no training unless asked for."""
    from fedcaptor._measuring import Request, budgets_of, measure

    budgets = budgets_of(macs, parameters, size, latency, tolerance)
    files = tuple(out or ())
    request = Request(
        model, weights, data, classes, budgets, tolerance, calibration, seed, files, strategy, recalibrate, tune_steps
    )
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("tuning", total=tune_steps, visible=False)
        layers = progress.add_task("measuring latency", total=None, visible=False)
        results = measure(
            request,
            lambda step: progress.update(bar, completed=step, visible=True),
            lambda done, total: progress.update(layers, completed=done, total=total, visible=True),
        )
    if as_json:
        print(json.dumps(results if len(results) > 1 else results[0]))
        return
    columns = [f"macs {budget.macs}" for budget in budgets] if len(budgets) > 1 else ["value"]
    table = Table("figure", *columns, title=f"{model} for classes {classes}")
    for key in results[0]:
        table.add_row(key, *(str(result[key]) for result in results))
    Console().print(table)


@app.command()
def atlas(
    model: ModelName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="Page to write (HTML).")],
    data: Source = "embedded",
    layers: Annotated[str, typer.Option(help="Channel groups by name, such as a,b; all where none is given.")] = "",
    filters: Annotated[int, typer.Option(min=1, max=64, help="Most filters of a layer.")] = 16,
    patches: Annotated[
        int,
        typer.Option(min=0, max=8, help="Parts of reference images beside each picture; 0: no image is in the page."),
    ] = 4,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps that a picture is painted in.")] = 64,
    seed: int = 0,
) -> None:
    """Show what a network's filters look for: a page of pictures, class profiles and image patches that excite them.

    The pictures come from the network alone, the patches from the data's reference part. VGG-16 takes a few minutes.
    """
    from fedcaptor._atlas import atlas_of_files, bars
    from fedcaptor._atlas_page import Look

    chosen = tuple(layer.strip() for layer in layers.split(",") if layer.strip())
    with bars() as on_progress:
        atlas_of_files(model, weights, data, out, Look(chosen, filters, patches, steps, seed), on_progress)
    Console().print(f"atlas: {out}", highlight=False, soft_wrap=True)


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
    from fedcaptor.cli.tables import summary_table, sweep_table

    chosen = list(overrides or [])
    if data is not None:
        chosen.append(f"data.source={json.dumps(data)}")
    if weights is not None:
        chosen.append(f"model.weights={json.dumps(str(weights.resolve()))}")
    try:
        run = fedcaptor.simulate(scenario, chosen, seeds=seeds, out=out, engine=engine.value, fresh=fresh)
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
) -> None:
    """Write the report page of finished runs and sweeps again and print their tables."""
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


def main() -> None:
    """Run the command line: errors are one line and exit code 2; typer ends an interruption with 130."""
    try:
        with explained("fedcaptor.cli"):
            app()
    except (fedcaptor.FedcaptorError, OSError) as error:  # of the system: a full disk, a folder of someone else's
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
