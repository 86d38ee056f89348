"""One frozen object of settings per benchmark: it makes the options of its command, what its record says of all rows,
and the command line that the results show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from benchmarks.progress import OnPhase, bars
from benchmarks.record import Row, open_record, sweep

SHARED = "shared by all rows"
"""Marks a field, in its `Annotated`, that the record's settings hold: rows of other values are not comparable."""

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
"""Makes the figures of a row from its key; None where nothing could be measured."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark is a subclass in a module of its name: its fields are options, its docstring is the help."""

    @classmethod
    def name(cls) -> str:
        """Return the name of the command, which is that of the module."""
        return cls.__module__.rpartition(".")[2]

    def row_keys(self) -> list[Row]:
        """Return what tells the wanted rows apart, in the order in which they are measured."""
        raise NotImplementedError

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> Mapping[str, Any]:
        """Return the figures of one row."""
        raise NotImplementedError

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        """Give a function that measures; a benchmark whose rows share work or a folder overrides this."""
        yield partial(self.measure, on_phase=on_phase)

    def shared(self) -> dict[str, Any]:
        """Return the record's settings: the fields that are marked `SHARED`."""
        return {name: getattr(self, name) for name, parts in _annotations(type(self)).items() if SHARED in parts}

    def options(self) -> dict[str, Any]:
        """Return what the shown command line gives, by field; None leaves an option out."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def command_line(self, file: Path) -> str:
        """Return the command as a reader of the results types it, in a checkout."""
        hints = _annotations(type(self))
        given = {_flag(name, hints[name]): value for name, value in self.options().items()}
        words = [f" {flag} {_word(v)}" for flag, value in given.items() for v in _values(value)]
        return f"python -m benchmarks {self.name()}{''.join(words)} --json benchmarks/results/{file.name}"

    def run(self, file: Path, fresh: bool = False) -> None:
        """Measure the rows that `file` lacks. Raises StateError when its rows are of other settings."""
        record = open_record(file, self.name(), self.shared(), self.command_line(file), fresh)
        with bars(self.name().replace("_", " ")) as (on_row, on_phase), self.measuring(on_phase) as measure:
            sweep(record, file, self.row_keys(), measure, on_row)


File = Annotated[Path, typer.Option("--json", help="File of the rows; finished ones are not measured again.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start the file anew.")]


def command(benchmark: type[Benchmark]) -> Callable[..., None]:
    """Return the function that typer makes a command of: --json, the benchmark's fields, --fresh."""

    def run(file: Path, fresh: bool, **given: Any) -> None:
        benchmark(**given).run(file, fresh)

    hints = get_type_hints(benchmark, include_extras=True)
    parameters = [_parameter("file", File)]
    parameters += [_parameter(f.name, hints[f.name], f.default) for f in fields(benchmark)]
    parameters += [_parameter("fresh", Fresh, False)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__doc__ = benchmark.__doc__
    return run


def _parameter(name: str, hint: Any, default: Any = MISSING) -> inspect.Parameter:
    given = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=given)


def _annotations(benchmark: type[Benchmark]) -> dict[str, tuple[Any, ...]]:
    """Return what fields' `Annotated` hold beside the type."""
    hints = get_type_hints(benchmark, include_extras=True)
    return {field.name: hints[field.name].__metadata__ for field in fields(benchmark)}


def _flag(name: str, annotation: tuple[Any, ...]) -> str:
    """Return an option's name: the one that typer is given for it, or that of its field."""
    (option,) = (part for part in annotation if part is not SHARED)
    return option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _word(value: Any) -> str:
    """Write a value as it is typed: a path without its folders, in quotes what the shell would take apart."""
    if isinstance(value, Path):
        return value.name
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f'"{text}"' if ";" in text else text
