"""Bars on standard error: one of all rows, one of what the row in flight does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

OnRow = Callable[[int, int], None]
OnPhase = Callable[[str, int, int], None]


@contextmanager
def bars(title: str, console: Console | None = None) -> Iterator[tuple[OnRow, OnPhase]]:
    """`on_row(done, total)` and `on_phase(name, done, total)` for the length of a sweep."""
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as progress:
        rows, phase = progress.add_task(title, total=None), progress.add_task("", total=None)
        shown = 0.0

        def on_row(done: int, total: int) -> None:
            progress.update(rows, completed=done, total=total)

        def on_phase(name: str, done: int, total: int) -> None:
            nonlocal shown
            if done == total or time.monotonic() - shown > 0.1:
                shown = time.monotonic()
                progress.update(phase, description=name, completed=done, total=total)

        yield on_row, on_phase
