"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Option("--json", help="File of the rows; finished ones are not measured again.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start the file anew.")]
Model = Annotated[str, typer.Option(help="Registered model, or your own as package.module:factory.")]
Weights = Annotated[Path, typer.Option(help="Its weights, safetensors.")]
Test = Annotated[
    str | None, typer.Option(help="Source of test images; split `test` where it has some. As --data if not given.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch and numpy; all cores if not given.")]
