"""Define options that several commands share, and accept names that earlier releases gave them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperCommand

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
ModelName = Annotated[str, typer.Argument(help="Registered model (small-cnn, vgg16, …) or package.module:factory.")]
Weights = Annotated[Path, typer.Option(help="Weights as safetensors.")]
Source = Annotated[
    str,
    typer.Option(
        help="embedded, an .npz file, a folder of class folders, torchvision:NAME, or package.module:function."
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, may be repeated.")]


def formerly(option: str) -> type[TyperCommand]:
    """Make a command whose argument was an option in earlier releases; that still works: `--model X` is `X`."""

    class Command(TyperCommand):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            return super().parse_args(ctx, [word.removeprefix(f"{option}=") for word in args if word != option])

    return Command
