"""`python -m benchmarks`: every figure that the project claims, one command each."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from benchmarks.memory import memory
from common.errors import FedcaptorError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("memory")(memory)


@app.callback()
def benchmarks() -> None:
    """Side-by-side figures."""


def main() -> None:
    """Entry point: errors in one line, exit code 2."""
    try:
        app()
    except FedcaptorError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
