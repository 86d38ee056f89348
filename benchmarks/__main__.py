"""`python -m benchmarks`: every figure that the project claims, one command each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import lite0
from benchmarks.catalogue import Catalogue
from benchmarks.chaos import Chaos
from benchmarks.command import command
from benchmarks.corrections import Corrections
from benchmarks.eight_bits import EightBits
from benchmarks.fallback import Fallback
from benchmarks.federation import Federation
from benchmarks.fleet import FleetLoad
from benchmarks.gradients import Gradients
from benchmarks.heterofl import HeteroFL
from benchmarks.local_privacy import LocalPrivacy
from benchmarks.look_poisoning import LookPoisoning
from benchmarks.looks import Looks
from benchmarks.many_classes import ManyClasses
from benchmarks.memory import Memory
from benchmarks.moments import MomentsCost
from benchmarks.on_device import OnDevice
from benchmarks.personal_step import PersonalStep
from benchmarks.phone import Phone
from benchmarks.phone_client import PhoneClient
from benchmarks.poisoning import Poisoning
from benchmarks.preference import Preference
from benchmarks.private_vs_open import PrivateVsOpen
from benchmarks.pruning import Pruning
from benchmarks.results import write_results
from benchmarks.secure_sum import SecureSum
from benchmarks.slicing import Slicing
from fedcaptor.common.errors import FedcaptorError

app = typer.Typer(
    help="Side-by-side figures. Each command fills a JSON file row by row and goes on where it stopped; `results` "
    "writes docs/results.md from the files in benchmarks/results.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("catalogue")(command(Catalogue))
app.command("chaos")(command(Chaos))
app.command("corrections")(command(Corrections))
app.command("eight_bits")(command(EightBits))
app.command("fallback")(command(Fallback))
app.command("federation")(command(Federation))
app.command("fleet")(command(FleetLoad))
app.command("gradients")(command(Gradients))
app.command("heterofl")(command(HeteroFL))
app.command("lite0")(lite0.command)
app.command("local_privacy")(command(LocalPrivacy))
app.command("look_poisoning")(command(LookPoisoning))
app.command("looks")(command(Looks))
app.command("many_classes")(command(ManyClasses))
app.command("memory")(command(Memory))
app.command("moments")(command(MomentsCost))
app.command("on_device")(command(OnDevice))
app.command("personal_step")(command(PersonalStep))
app.command("phone")(command(Phone))
app.command("phone_client")(command(PhoneClient))
app.command("poisoning")(command(Poisoning))
app.command("preference")(command(Preference))
app.command("private_vs_open")(command(PrivateVsOpen))
app.command("pruning")(command(Pruning))
app.command("secure_sum")(command(SecureSum))
app.command("slicing")(command(Slicing))


@app.command()
def results(
    rows: Annotated[Path, typer.Option(help="Folder of the JSON files.")] = Path("benchmarks/results"),
    docs: Annotated[Path, typer.Option(help="Folder of results.md and figures/.")] = Path("docs"),
) -> None:
    """Write docs/results.md and its figures from the stored rows; nothing is measured."""
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
