"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from benchmarks.command import SHARED

Model = Annotated[str, Option(help="Registered model, or your own as package.module:factory.")]
Models = Annotated[str, Option(help="Registered names, separated by commas.")]
Weights = Annotated[Path, Option(help="Its weights, safetensors.")]
Test = Annotated[
    str | None, Option(help="Source of test images; split `test` where it has some. As --data if not given.")
]
Classes = Annotated[str, Option(help="Target classes, one or more numbers of them.")]
Draws = Annotated[int, Option(min=1, help="Random class sets of each size.")]
Budgets = Annotated[str, Option(help="Budgets: ratios of the full model's MACs.")]
Threads = Annotated[int | None, Option(min=1, help="Threads of torch and numpy; all cores if not given.")]
MinCohort = Annotated[int, Option(min=20, help="privacy.min_cohort."), SHARED]
Populations = Annotated[str, Option(help="Populations; the smaller are the first phones of the largest.")]
