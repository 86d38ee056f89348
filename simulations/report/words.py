"""Numbers and values of unknown shape as a person reads them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

_SPACE = "\u00a0"  # no line break between a number and its unit


def percent(value: float | None, digits: int = 1) -> str:
    """A ratio as percent."""
    return "–" if value is None else f"{100 * value:.{digits}f}{_SPACE}%"


def size(value: float | None) -> str:
    """Bytes, in decimal units."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f}{_SPACE}{unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g}{_SPACE}{unit}"
        value /= 1000
    raise AssertionError


def duration(value: float | None) -> str:
    """Seconds, in words."""
    if value is None:
        return "–"
    if value < 59.5:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    hours, rest = divmod(round(value), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def number(value: float | None) -> str:
    """Three significant digits."""
    return "–" if value is None else f"{value:.3g}"


def count(value: int | None) -> str:
    """A whole number with separators."""
    return "–" if value is None else f"{value:,}"


def words(value: Any) -> str:
    """A value of unknown shape as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, float):
        return number(value)
    return "" if value is None else str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows of a nested mapping."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        rows += flat(value, f"{name}: ") if isinstance(value, Mapping) else [(name, words(value) or "–")]
    return rows


def moment(value: str) -> str:
    """A date and time of ISO 8601, which is in UTC, to the minute."""
    return f"{value[:10]} {value[11:16]} UTC"


def short(text: str, length: int = 20) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it would read tags and entities."""
    return html.escape(text, quote=False)
