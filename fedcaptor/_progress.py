"""Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

from fedcaptor.common.progress import OnProgress, lines

_REFRESH_SECONDS = 0.1


@contextmanager
def shown_on(console: Console, names: Mapping[str, str] | None = None) -> Iterator[OnProgress]:
    """A function `(what, done, total)` that shows a bar for each kind of work, which starts anew at `done` ≤ 1.

    A console that is no terminal gets a line every few seconds, a quiet one nothing. `names`: of kinds, in words.
    """
    words = names or {}
    if not (console.is_terminal or console.is_jupyter):
        said = lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        yield lambda what, done, total: said(words.get(what, what), done, total)
        return
    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, Remaining(), console=console, transient=True, disable=console.quiet) as bars:
        tasks: dict[str, TaskID] = {}
        last = time.monotonic()

        def on_progress(what: str, done: int, total: int) -> None:
            nonlocal last
            if what not in tasks or done <= 1:
                if what in tasks:
                    bars.remove_task(tasks[what])
                tasks[what] = bars.add_task(words.get(what, what), total=total)
            if done == total or time.monotonic() - last > _REFRESH_SECONDS:
                last = time.monotonic()
                bars.update(tasks[what], completed=done)

        yield on_progress
