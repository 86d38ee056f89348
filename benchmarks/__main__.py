"""`python -m benchmarks`: every figure that the project claims, one command each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import (
    fallback,
    federation,
    gradients,
    lite0,
    local_privacy,
    memory,
    moments,
    phone,
    poisoning,
    preference,
    private_vs_open,
    pruning,
    secure_sum,
    slicing,
)
from fedcaptor.common.errors import FedcaptorError

app = typer.Typer(
    help="Side-by-side figures. Each command fills a JSON file row by row and goes on where it stopped; `results` "
    "writes docs/results.md from the files in benchmarks/results.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("fallback")(fallback.command)
app.command("federation")(federation.command)
app.command("gradients")(gradients.command)
app.command("lite0")(lite0.command)
app.command("local_privacy")(local_privacy.command)
app.command("memory")(memory.command)
app.command("moments")(moments.command)
app.command("phone")(phone.command)
app.command("poisoning")(poisoning.command)
app.command("preference")(preference.command)
app.command("private_vs_open")(private_vs_open.command)
app.command("pruning")(pruning.command)
app.command("secure_sum")(secure_sum.command)
app.command("slicing")(slicing.command)


@app.command()
def results(
    rows: Annotated[Path, typer.Option(help="Folder of the JSON files.")] = Path("benchmarks/results"),
    docs: Annotated[Path, typer.Option(help="Folder of results.md and figures/.")] = Path("docs"),
) -> None:
    """Write docs/results.md and its figures from the stored rows; nothing is measured."""
    from benchmarks.results import write_results

    print(write_results(rows, docs))


def main() -> None:
    """Entry point: errors in one line, exit code 2; an interruption ends with 130."""
    console = Console(stderr=True)
    try:
        app()
    except FedcaptorError as error:
        console.print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on after the last finished row", highlight=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
