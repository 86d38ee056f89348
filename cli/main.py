"""The `fedcaptor` command: thin, the one place that sees all packages."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from fedcaptor.cli.phone import app as phone
from fedcaptor.cli.privacy import app as privacy
from fedcaptor.common.errors import FedcaptorError

app = typer.Typer(
    help="Smaller CNNs for the classes that are needed. Start with `fedcaptor prune --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(phone, name="phone", no_args_is_help=True)
app.add_typer(privacy, name="privacy", no_args_is_help=True)
console = Console(stderr=True)

ModelName = Annotated[str, typer.Argument(help="Registered model (small-cnn, vgg16, …) or package.module:factory.")]
Weights = Annotated[Path, typer.Option(help="Weights as safetensors.")]
Source = Annotated[str, typer.Option(help="embedded, an .npz file, a folder of class folders, or torchvision:NAME.")]


class Engine(StrEnum):
    """Who carries the messages."""

    local = "local"
    ray = "ray"


class Participant(StrEnum):
    """Whose file is written."""

    phone = "phone"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Registered model or package.module:factory.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    data: Source = "embedded",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the base part of the data.")] = 12,
    seed: int = 0,
) -> None:
    """Train a base model on the data's base part; its accuracy on the other parts goes into the file."""
    from fedcaptor.cli.train import train_model

    train_model(model, data, out, epochs, seed, console)


@app.command()
def inspect(model: ModelName, weights: Weights, data: Source = "embedded", as_json: AsJson = False) -> None:
    """Show a model's channel groups and what each layer costs."""
    from fedcaptor.cli.prune import load_base
    from fedcaptor.common.data.source import load

    groups = load_base(model, weights, load(data)).groups
    if as_json:
        print(groups.to_json())
        return
    table = Table("group", "channels", "producers", "read by", title=f"{model}: {groups.macs():,} MACs")
    for group in groups.groups:
        readers = ", ".join(c.layer for c in group.consumers) or ("the classes" if group.output else "–")
        table.add_row(group.name, str(group.channels), ", ".join(group.producers), readers)
    Console().print(table)


@app.command()
def prune(
    model: ModelName,
    weights: Weights,
    classes: Annotated[str, typer.Option(help="Needed labels, for example 3,5.")],
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
            "nothing about classes), captor (clusters of filters that prefer unneeded classes), taylor, l1, random."
        ),
    ] = "reconstruct",
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate", help="Measure batch-norm statistics anew; helps strategies other than reconstruct."
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
            ".pt2 (a program for PyTorch alone) or .onnx (for ONNX Runtime; needs fedcaptor[onnx])."
        ),
    ] = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """One model, one class set, no federation: a physically smaller model, without training unless asked for."""
    from fedcaptor.cli.prune import Request, prune_model, ratios_of
    from fedcaptor.common.planner import Budget

    if (macs, parameters, size, latency) == (None, None, None, None):
        macs = "0.4" if tolerance is None else "1"
    budgets = tuple(Budget(ratio, parameters=parameters, bytes=size, latency=latency) for ratio in ratios_of(macs))
    files = tuple(out or ())
    request = Request(
        model, weights, data, classes, budgets, tolerance, calibration, seed, files, strategy, recalibrate, tune_steps
    )
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("tuning", total=tune_steps, visible=False)
        layers = progress.add_task("measuring latency", total=None, visible=False)
        results = prune_model(
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
    """What a network's filters look for: a page of pictures, class profiles and the image patches that excite them.

    The pictures come from the network alone, the patches from the data's reference part. VGG-16 takes a few minutes.
    """
    from fedcaptor.cli.atlas import Request, make_atlas

    chosen = tuple(layer.strip() for layer in layers.split(",") if layer.strip())
    with Progress(console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        make_atlas(Request(model, weights, data, out, chosen, filters, patches, steps, seed), on_progress)
    Console().print(f"atlas: {out}", highlight=False, soft_wrap=True)


@app.command()
def simulate(
    scenario: Annotated[
        Path | None, typer.Argument(help="TOML file, for example simulations/scenarios/demo.toml.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, may be repeated.")] = None,
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
    from fedcaptor.cli.simulate import run_scenario, run_seeds, summary_table, sweep_table

    chosen = list(overrides or [])
    if data is not None:
        chosen.append(f"data.source={json.dumps(data)}")
    if weights is not None:
        chosen.append(f"model.weights={json.dumps(str(weights.resolve()))}")
    try:
        if seeds is not None:
            result = run_seeds(scenario, chosen, seeds, out, engine.value, fresh, console)
            table = sweep_table(out.name, result)
        else:
            result = run_scenario(scenario, chosen, out, engine.value, fresh, console)
            table = summary_table({out.name: result})
    except KeyboardInterrupt:  # typer would end here with the same code, without a word
        console.print("interrupted: the same command goes on from the last finished phase", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(result))
        return
    Console().print(table)
    Console().print(f"report: {out / 'report.html'}", highlight=False)


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs, shown side by side, or of sweeps.")
    ],
) -> None:
    """Write the report page of finished runs and sweeps again and print their tables."""
    from fedcaptor.cli.simulate import read_summary, summary_table, sweep_table
    from fedcaptor.simulations.report import write_report
    from fedcaptor.simulations.sweep_folder import is_sweep, rewrite

    sweeps = [directory for directory in directories if is_sweep(directory)]
    runs = [directory for directory in directories if directory not in sweeps]
    tables = [sweep_table(directory.name, rewrite(directory)) for directory in sweeps]
    for directory in runs:
        write_report(directory)
    if runs:
        tables.append(summary_table({d.name: read_summary(d) for d in runs}))
    for table in tables:
        Console().print(table)
    for directory in directories:
        Console().print(f"report: {directory / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def exporter(
    directory: Annotated[Path, typer.Argument(help="Folder of a run.")],
    host: Annotated[str, typer.Option(help="Address to bind; loopback unless you mean it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 9464,
) -> None:
    """Serve a run's aggregate pruning to Prometheus until interrupted."""
    from fedcaptor.server.exporter import serve

    with serve(directory, host, port) as serving:
        console.print(f"metrics: {serving.url}", highlight=False)
        serving.wait()


@app.command()
def config(
    scenario: Annotated[Path | None, typer.Argument(help="Check this TOML file and print all its values.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Print the reference page of all keys.")] = False,
    reader: Annotated[Participant | None, typer.Option("--for", help="Print this one's file, in TOML.")] = None,
) -> None:
    """Check a scenario, print what can be configured, or the part of a scenario that a phone reads."""
    from fedcaptor.common.config import load_config, phone_config, reference_page

    if reader is not None:
        print(phone_config(load_config(scenario)), end="")
        return
    print(reference_page() if reference else load_config(scenario).model_dump_json(indent=1) + "\n", end="")


@app.command()
def messages() -> None:
    """Print the reference page of the messages between server and phones."""
    from fedcaptor.common.messages_page import reference_page

    print(reference_page(), end="")


def main() -> None:
    """Entry point: errors in one line, exit code 2; typer ends an interruption with 130."""
    try:
        app()
    except (FedcaptorError, OSError) as error:  # of the system: a full disk, a folder of someone else's
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
