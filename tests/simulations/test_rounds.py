"""`rounds.csv`: one row a round, sums by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedcaptor.common.statistics import OUTCOME_FIGURES
from fedcaptor.server.record import PhaseRecord
from fedcaptor.simulations import rounds
from fedcaptor.simulations.records import ROUNDS, Round


def phase(round, name, seconds=1.5, **tally):
    return PhaseRecord(round=round, phase=name, seconds=seconds, **tally)


def make_run():
    """Two rounds; the second one's fleet is lost in noise."""
    fleet = np.array([[6, 5, 5.4, 2, 1, 0.6, 6, 3], [4, 3, 3.6, 2, 1, 0.4, 4, 1]], dtype=float)
    return SimpleNamespace(
        phases=[
            phase(1, "usage-0", asked=12, replies=10, dropped=2, bytes_down=100, bytes_up=40, refused={"nan": 1}),
            phase(1, "plans", seconds=0.25),
            phase(1, "deliver", asked=12, replies=12, bytes_down=900, bytes_up=24, refused={"nan": 1, "stale": 2}),
            phase(2, "usage-1", asked=12, replies=11, dropped=1, bytes_down=50, bytes_up=44),
        ],
        rounds=[
            SimpleNamespace(round=1, centroids=[0, 1], fleet=fleet, epsilon=1.0),
            SimpleNamespace(round=2, centroids=[0], fleet=np.full((1, len(OUTCOME_FIGURES)), -3.0), epsilon=1.5),
        ],
    )


def test_a_round_sums_its_phases_and_divides_the_fleets_sums():
    first, second = (row.plain() for row in rounds.rounds_of(make_run()))
    assert set(first) == set(rounds.COLUMNS) == set(Round.model_fields)
    counts = {"round": 1, "phases": 3, "asked": 24, "replies": 22, "dropped": 2, "refused": 4, "bytes_down": 1000}
    assert first.items() >= (counts | {"bytes_up": 64, "seconds": 3.25, "clusters": 2, "epsilon": 1.0}).items()
    means = {
        "agreement_cluster": 0.8,
        "agreement": 0.9,
        "macs": 0.4,
        "parameters": 0.2,
        "escalated": 0.1,
        "drifted": 0.4,
    }
    assert {name: first[name] for name in means} == pytest.approx(means)
    assert second["epsilon"] == 1.5
    assert all(second[name] is None for name in rounds.FLEET)


def test_the_file_has_a_header_and_empty_fields(tmp_path):
    path = tmp_path / ROUNDS
    rows = [row.plain() for row in rounds.rounds_of(make_run())]
    rounds.write_rows(path, rows)
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(rounds.COLUMNS)
    assert lines[2] == "2,1,12,11,1,0,50,44,1.5,1,1.5,,,,,,"
    read = rounds.read_rows(path)
    assert [float(row["agreement"]) if row["agreement"] else None for row in read] == [pytest.approx(0.9), None]
    assert list(tmp_path.iterdir()) == [path]


def test_every_column_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "outputs.md").read_text()
    for column, meaning in rounds.COLUMNS.items():
        assert f"| `{column}` | {meaning} |" in page


def test_rows_that_do_not_fit_leave_the_old_file(tmp_path):
    path = tmp_path / ROUNDS
    path.write_text("old")
    with pytest.raises(ValueError, match="accuracy"):
        rounds.write_rows(path, [{"accuracy": 1}])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
