"""Run the `fedcaptor` command: options and printing over the Python interface."""

from __future__ import annotations

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import fedcaptor
from fedcaptor._extras import explained
from fedcaptor._progress import shown_on
from fedcaptor.cli.catalogue import app as catalogue
from fedcaptor.cli.deploy import app as deploy
from fedcaptor.cli.devices import app as devices
from fedcaptor.cli.options import AsJson, ModelName, Source, Weights, formerly
from fedcaptor.cli.phone import app as phone
from fedcaptor.cli.privacy import app as privacy
from fedcaptor.cli.register import app as register
from fedcaptor.cli.service import app as service
from fedcaptor.cli.simulation import app as simulation

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(catalogue, name="catalogue", no_args_is_help=True)
app.add_typer(deploy, name="deploy", no_args_is_help=True)
app.add_typer(devices, name="devices", no_args_is_help=True)
app.add_typer(phone, name="phone", no_args_is_help=True)
app.add_typer(privacy, name="privacy", no_args_is_help=True)
app.add_typer(register, name="register", no_args_is_help=True)
app.add_typer(simulation)
app.add_typer(service)
console = Console(stderr=True)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fedcaptor {version('fedcaptor')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make CNNs smaller for the classes that matter. Start with `fedcaptor prune --help`."""


@app.command(cls=formerly("--model"))
def train(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="File to write.")],
    data: Source = "embedded",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the base part of the data.")] = 12,
    seed: int = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where a checkpoint is left.")] = False,
) -> None:
    """Train a base model on the data's base part; its accuracy on the other parts goes into the file.

    Each epoch shows the accuracy on the reference part and leaves OUT.checkpoint: after a kill or Ctrl-C the same
    command goes on from there, to the same weights. Ctrl-C writes the weights of the best epoch so far.
    """
    fedcaptor.train(model, data, out=out, epochs=epochs, seed=seed, fresh=fresh)


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
def calibrate(
    model: ModelName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="Weights to write, .safetensors.")],
    data: Source = "embedded",
) -> None:
    """Fold a calibration into the last layer: phones of a network with many classes then count these better."""
    from fedcaptor._calibration import calibrate_files

    found = calibrate_files(model, weights, data, out)
    temperature, bias = found.calibration.temperature, abs(found.calibration.bias).max()
    print(
        f"temperature {temperature:.2f}, biases within {bias:.2f}; right answers to {found.images} other images: "
        f"{found.before:.1%} before, {found.after:.1%} now"
    )


@app.command()
def synthesise(
    model: ModelName,
    weights: Weights,
    shape: Annotated[str, typer.Option(help="Of an image: channels, height and width, such as 3x32x32.")],
    out: Annotated[Path, typer.Option(help="Data source to write, .npz.")],
    each: Annotated[int, typer.Option(min=1, help="Images of every class.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 100,
    seed: int = 0,
) -> None:
    """Make images of a network's weights alone, for a server that has the network and no photos.

    They are what the network takes for its classes, with the statistics that its batch norms saw in training. Give the
    file as `data.reference`: plans, submodels and the personal step on phones are made with it.
    """
    from fedcaptor._synthesis import synthesise_files

    with shown_on(console) as on_progress:
        found = synthesise_files(model, weights, shape, out, each, steps, seed, on_progress)
    print(f"{found.images} images in {out}; the network calls {found.agreement:.1%} of them what they are labelled")


@app.command()
def export_graph(
    model: ModelName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="File to write, .onnx.")],
    data: Source = "embedded",
) -> None:
    """Export a model's operations and gradients, without weights, for phones that have ONNX Runtime and no torch."""
    from fedcaptor._graph_export import export_graph

    export_graph(model, weights, data, out)


@app.command()
def latency_programs(
    model: ModelName,
    weights: Weights,
    out: Annotated[Path, typer.Option(help="File to write, .zip.")],
    data: Source = "embedded",
    multiple: Annotated[int, typer.Option(min=1, help="Channel counts are multiples of this, as in `prune`.")] = 8,
) -> None:
    """Make the small programs that a model's latency table is measured with on a phone, by ONNX Runtime.

    On the phone: `python -m fedcaptor.client.latency_table OUT --out TABLE`. Then `prune --latency 0.5 --latency-table
    TABLE` plans for that phone.
    """
    from fedcaptor._latency_programs import write_latency_programs

    count = write_latency_programs(model, weights, data, out, multiple)
    Console().print(f"{count} programs: {out}", highlight=False, soft_wrap=True)


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Registered models; all where none is named.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the registered models: what each was designed for, its size, and what can be cut from it.

    Each is built and traced; all of them take half a minute and three gigabytes of memory, torchvision's VGG-16 most.
    """
    from fedcaptor._inspection import registered

    rows = registered(names)
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("classes", "images", "parameters", "MACs", "channels", "groups")
    table = Table(Column("model", no_wrap=True), *columns, box=None, padding=(0, 1, 0, 0))  # fits 80 columns
    for row in rows:
        images, channels = "×".join(map(str, row["input_shape"])), row["prunable"].values()
        numbers = (
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.0f} M",
            str(sum(channels)),
            str(len(channels)),
        )
        table.add_row(row["name"], str(row["classes"]), images, *numbers)
    table.caption = "channels: that can be cut, beside classes; groups: of those that only go together"
    Console().print(table)


@app.command()
def prune(
    model: ModelName,
    weights: Weights,
    classes: Annotated[str, typer.Option(help="Target classes by label or by name, for example 3,5 or shirt,coat.")],
    data: Source = "embedded",
    macs: Annotated[
        str | None,
        typer.Option(
            help="MACs to keep, as a ratio of the full model; 0.4 where nothing else is given. Several, such as "
            "0.5,0.3,0.1, are compared."
        ),
    ] = None,
    parameters: Annotated[float | None, typer.Option(help="Parameters to keep, as a ratio of the full model.")] = None,
    size: Annotated[
        int | None,
        typer.Option("--bytes", help="Most bytes of each file of --out; of .safetensors where there is none."),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            help="Time of one image to keep, as a ratio of the full model's, planned by a table of each layer's "
            "seconds and measured again. MACs are not time: layers that are slow for their MACs give more. The table "
            "is read from WEIGHTS.latency.json; without that file it is measured here on one thread and written there "
            "(half a minute for VGG-16). Measure on an idle machine of the kind that will run the submodel; remove the "
            "file to measure again."
        ),
    ] = None,
    latency_table: Annotated[
        Path | None,
        typer.Option(
            help="Table to plan --latency by, in place of WEIGHTS.latency.json. One of a phone (`latency-programs`) "
            "makes a plan for that phone; nothing is then held to what is measured here."
        ),
    ] = None,
    multiple: Annotated[
        int,
        typer.Option(
            min=1,
            help="Kept channels are multiples of this. ONNX Runtime computes in blocks of 8 or 16 channels, and a "
            "block that is not full takes as long as a full one.",
        ),
    ] = 8,
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
            help="Learn so many steps, three minutes at most, from the full model's answers on reference images of the "
            "classes. A quarter of them is held out, and what was learnt is kept where they tell that it helped. "
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
    half: Annotated[bool, typer.Option("--half", help="Half precision in .pt2 and .onnx files.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Eight bits in the .onnx file.")] = False,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of each channel that the network's training subtracted from pixels in [0, 1], such as 0.5 or "
            "0.485,0.456,0.406; with --std, in place of those in the weights' metadata."
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation that it divided by.")] = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Make one model physically smaller for one set of classes: no federation, and no training unless asked for."""
    from fedcaptor._measuring import Request, budgets_of, measure, statistics_of

    budgets = budgets_of(macs, parameters, size, latency, tolerance, multiple)
    files = tuple(out or ())
    request = Request(
        model,
        weights,
        data,
        classes,
        budgets,
        tolerance,
        calibration,
        seed,
        files,
        strategy,
        recalibrate,
        tune_steps,
        statistics_of(mean, std),
        half,
        int8,
        latency_table,
    )
    with shown_on(console) as on_progress:
        results = measure(
            request,
            lambda step: on_progress("tuning", step, tune_steps),
            lambda done, total: on_progress("measuring latency", done, total),
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
    from fedcaptor._atlas import atlas_of_files
    from fedcaptor._atlas_page import Look

    chosen = tuple(layer.strip() for layer in layers.split(",") if layer.strip())
    with shown_on(console) as on_progress:
        atlas_of_files(model, weights, data, out, Look(chosen, filters, patches, steps, seed), on_progress)
    Console().print(f"atlas: {out}", highlight=False, soft_wrap=True)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning that is meant for users as one line, others as Python does."""
    if issubclass(category, fedcaptor.NormalisationWarning):
        console.print(f"[yellow]warning:[/yellow] {escape(str(message))}", highlight=False, soft_wrap=True)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=file or sys.stderr, end="")


def main() -> None:
    """Run the command line: errors are one line and exit code 2; typer ends an interruption with 130."""
    warnings.showwarning = _warn
    try:
        with explained("fedcaptor.cli"):
            app()
    except (fedcaptor.FedcaptorError, OSError) as error:  # of the system: a full disk, a folder of someone else's
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
