"""One object of settings makes options, settings of the record and the shown command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer import Option
from typer.testing import CliRunner

from benchmarks.command import SHARED, Benchmark, command
from benchmarks.record import read_record


@dataclass(frozen=True, kw_only=True)
class Counting(Benchmark):
    """Count to a number.

    Example: none
    """

    numbers: Annotated[str, Option(help="Numbers to count to.")] = "1"
    min_cohort: Annotated[int, Option(min=20, help="A bound."), SHARED] = 20
    epsilon: Annotated[float | None, Option(help="A figure."), SHARED] = None
    weights: Annotated[Path | None, Option(help="A file.")] = None
    overrides: Annotated[list[str] | None, Option("--set", help="May be repeated.")] = None

    def row_keys(self):
        return [{"number": int(text)} for text in self.numbers.split(",")]

    def measure(self, key, on_phase):
        return {"count": sum(1 for _ in range(key["number"]))}


@pytest.fixture
def app():
    made = typer.Typer()
    made.command("counting")(command(Counting))
    return made


def test_a_command_line_is_what_a_reader_types():
    settings = Counting(numbers="2;3", epsilon=8.0, weights=Path("/elsewhere/a.bin"), overrides=["a=1", "b=2"])
    given = '--numbers "2;3" --min-cohort 20 --epsilon 8 --weights a.bin --set a=1 --set b=2'
    name = Counting.name()
    assert settings.command_line(Path("/tmp/c.json")) == (
        f"python -m benchmarks {name} {given} --json benchmarks/results/c.json"
    )


def test_a_record_holds_the_shared_fields_alone():
    assert Counting(numbers="7", epsilon=2.0).shared() == {"min_cohort": 20, "epsilon": 2.0}


def test_options_reach_the_fields(app, tmp_path):
    file = tmp_path / "rows.json"
    given = ["--json", str(file), "--numbers", "3,4", "--epsilon", "2", "--set", "a=1"]
    assert CliRunner().invoke(app, given).exit_code == 0
    record = read_record(file)
    assert record.rows == [{"number": 3, "count": 3}, {"number": 4, "count": 4}]
    assert record.settings == {"min_cohort": 20, "epsilon": 2.0}
    assert record.commands[0].endswith(
        "--numbers 3,4 --min-cohort 20 --epsilon 2 --set a=1 --json benchmarks/results/rows.json"
    )


def test_bounds_required_options_and_help_are_the_fields(app, tmp_path):
    run = CliRunner().invoke
    assert run(app, ["--json", str(tmp_path / "a.json"), "--min-cohort", "3"]).exit_code == 2
    assert run(app, []).exit_code == 2
    text = run(app, ["--help"]).output
    assert "Count to a number." in text
    assert "--fresh" in text


def test_fresh_starts_the_file_anew(app, tmp_path):
    file = tmp_path / "rows.json"
    for more in ([], ["--fresh", "--numbers", "9"]):
        assert CliRunner().invoke(app, ["--json", str(file), *more]).exit_code == 0
    assert [row["number"] for row in read_record(file).rows] == [9]
