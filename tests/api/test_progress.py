"""Progress as lines: one for each kind of work, and no more than one in some seconds of it."""

from __future__ import annotations

import io

from rich.console import Console

from fedcaptor._progress import shown_on
from fedcaptor.common.progress import SECONDS, lines


def test_a_line_at_the_start_of_each_kind_and_every_few_seconds() -> None:
    said: list[str] = []
    now = 0.0
    on_progress = lines(said.append, lambda: now)
    for done in range(1, 5):
        on_progress("answers", done, 8)
    now = SECONDS + 1
    on_progress("answers", 5, 8)
    on_progress("answers", 6, 8)
    on_progress("plans", 0, 0)
    assert said == ["answers: 1 of 8 (12 %)", "answers: 5 of 8 (62 %)", "plans: 0 of 0 (0 %)"]


def shown(**options: bool) -> str:
    """What a console gets to see of two kinds of work."""
    file = io.StringIO()
    with shown_on(Console(file=file, **options), {"messages": "phones [all] answer"}) as on_progress:
        for done in (1, 2):
            on_progress("messages", done, 2)
        on_progress("plans", 1, 1)
    return file.getvalue()


def test_without_a_terminal_lines_are_printed_and_with_one_bars_are_drawn() -> None:
    assert shown() == "phones [all] answer: 1 of 2 (50 %)\nplans: 1 of 1 (100 %)\n"
    assert "━" in shown(force_terminal=True)
    assert shown(quiet=True) == ""
