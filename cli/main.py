"""The `fedcaptor` command: thin, the one place that sees all packages."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.errors import FedcaptorError

app = typer.Typer(
    help="Smaller CNNs for the classes that are needed. Start with `fedcaptor prune --help`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

ModelName = Annotated[str, typer.Argument(help="Registered model (small-cnn, vgg16, …) or package.module:factory.")]
Weights = Annotated[Path, typer.Option(help="Weights as safetensors.")]
Source = Annotated[str, typer.Option(help="embedded, an .npz file, a folder of class folders, or torchvision:NAME.")]
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
    from cli.train import train_model

    train_model(model, data, out, epochs, seed, console)


@app.command()
def inspect(model: ModelName, weights: Weights, data: Source = "embedded", as_json: AsJson = False) -> None:
    """Show a model's channel groups and what each layer costs."""
    from common.data.source import load

    from cli.prune import load_base

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
    macs: Annotated[float, typer.Option(help="MACs to keep, as a ratio of the full model.")] = 0.4,
    calibration: Annotated[int, typer.Option(min=1, help="Unlabelled images per class that the engine sees.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Write the submodel here (safetensors).")] = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """One model, one class set, no federation: a physically smaller model, without training."""
    from cli.prune import prune_model

    start = time.perf_counter()
    result = prune_model(model, weights, data, classes, macs, calibration, seed, out)
    result["seconds"] = round(time.perf_counter() - start, 2)
    if as_json:
        print(json.dumps(result))
        return
    table = Table("figure", "value", title=f"{model} for classes {classes}")
    for key, value in result.items():
        table.add_row(key, json.dumps(value) if isinstance(value, list | dict) else str(value))
    Console().print(table)


def main() -> None:
    """Entry point: errors in one line, exit code 2; an interruption ends with 130."""
    try:
        app()
    except FedcaptorError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
