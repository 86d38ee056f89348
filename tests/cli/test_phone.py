"""`fedcaptor phone` on a folder as a phone leaves it: figures, the switch, erasing, folders that are no phone's."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedcaptor.cli.main import app, main
from fedcaptor.client.folder import PERIOD_DAYS, open_ledger, status
from fedcaptor.client.ledger import Ledger
from fedcaptor.client.usage import UsageLog
from fedcaptor.common.config import Privacy
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import epsilon
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import fewest_honest

SPEC = SumSpec("usage", 4, clip=1.0, scale=1024.0, noise_multiplier=10.0, cohort=100, min_survivors=80)
FILES = ("outcome.json", "submodel.safetensors", "submodel.onnx", "cluster.safetensors", "cluster.onnx")
SECRET = b"own classes 3 and 5"


def answer(folder: Path, number: int, kind: str = "usage", at: float = 1e9) -> None:
    privacy = Privacy()
    with Ledger(
        folder / "phone.db", durable=False, clock=lambda: at, delta=privacy.delta, budget_epsilon=privacy.epsilon
    ) as ledger:
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        ledger.answer(SPEC, digest, lambda: np.full(4, 1234567, np.uint32), kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A phone that met classes 3 and 5, answered twice and was killed once while it wrote."""
    place = tmp_path / "phone"
    place.mkdir()
    with UsageLog(place / "phone.db", 10, 100.0, durable=False) as log:
        log.record([3, 3, 5], day=1)
        log.mark()
    answer(place, 1)
    answer(place, 2, "outcome")
    for name in (*FILES, ".outcome.json.77.88.tmp", "album.jpg"):
        (place / name).write_bytes(SECRET)
    return place


def run(*words: str, typed: str = "") -> str:
    result = CliRunner().invoke(app, ["phone", *words], input=typed)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def at(folder: Path, now: float) -> tuple[float, dict[str, int]]:
    found = status(folder, Privacy(), lambda: now)
    return found.epsilon, found.answers


def test_status_counts_what_lies_in_the_period(folder: Path) -> None:
    both, later = 1e9 + 3600.0, 1e9 + PERIOD_DAYS * 86_400 + 1
    spent, kinds = at(folder, both)
    assert spent == pytest.approx(epsilon([SPEC] * 2, 1e-5))
    assert kinds == {"outcome": 1, "usage": 1}
    assert at(folder, later) == (0.0, {})


@pytest.mark.parametrize("corrupted", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("cohort", [24, 100, 1001, 20_000])
def test_status_bounds_what_a_server_learns_that_cheats(corrupted: float, cohort: int, tmp_path: Path) -> None:
    """It never states less than the noise of the fewest honest phones gives, and hardly more."""
    privacy = Privacy(corrupted=corrupted, dropout=0.1)
    spec = replace(SPEC, cohort=cohort, min_survivors=int(0.9 * cohort), min_cohort=int(0.9 * cohort))
    with open_ledger(tmp_path, privacy, make=True) as ledger:
        ledger.answer(spec, "0" * 64, lambda: np.zeros(4, np.uint32))
    fewest = fewest_honest(Terms.of(spec, "0" * 64, privacy.dropout, corrupted))
    exact = epsilon([spec], privacy.delta, (spec.min_survivors - fewest - 0.5) / cohort)
    assert exact <= status(tmp_path, privacy).epsilon_server <= (1.3 if corrupted < 0.3 else 1.8) * exact


def test_status_shows_sizes_and_no_class(folder: Path) -> None:
    found = json.loads(run("status", str(folder), "--json"))
    assert (found["answering"], found["budget"], found["delta"]) == (True, 8.0, 1e-5)
    assert found["stored"] == {"phone.db": (folder / "phone.db").stat().st_size} | dict.fromkeys(FILES, len(SECRET))
    figures = {"answering", "epsilon", "epsilon_server", "delta", "budget", "period_days", "answers", "named", "stored"}
    assert set(found) == figures
    table = run("status", str(folder))
    assert "on" in table
    assert "submodel.safetensors" in table
    assert f"{found['epsilon_server']:.3g} at most" in table


def test_the_folder_may_be_an_option_as_in_earlier_releases(folder: Path) -> None:
    assert run("status", "--folder", str(folder), "--json") == run("status", str(folder), "--json")


def test_the_phones_own_settings_are_read(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    file.write_text("[privacy]\nepsilon = 3\n")
    assert json.loads(run("status", str(folder), "--config", str(file), "--json"))["budget"] == 3
    file.write_text("[privacy]\nnoise = false\n")
    assert json.loads(run("status", str(folder), "--config", str(file), "--json"))["budget"] is None
    assert status(folder, Privacy(noise=False)).budget == math.inf


def test_a_phone_that_is_off_declines_until_it_is_on(folder: Path) -> None:
    assert run("off", str(folder)) == "answers are off\n"
    assert "off" in run("status", str(folder))
    with pytest.raises(PrivacyError, match="switched off"):
        answer(folder, 1)
    run("on", str(folder))
    answer(folder, 1)


@pytest.mark.parametrize("there", [False, True])
def test_a_phone_can_be_off_before_its_first_answer(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "apps" / "own"
    if there:
        folder.mkdir(parents=True)
    said = run("off", str(folder))
    assert said.startswith("answers are off")
    assert f"{folder} was empty" in said
    assert (folder / "phone.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(PrivacyError, match="switched off"):
        answer(folder, 1)
    assert run("on", str(folder)) == "answers are on\n"
    answer(folder, 1)


def test_erasing_leaves_the_charges_and_what_is_not_the_phones(folder: Path) -> None:
    before = at(folder, 1e9)
    said = json.loads(run("erase", str(folder), "--yes", "--json"))
    assert sorted(said["deleted"]) == sorted([*FILES, ".outcome.json.77.88.tmp"])
    assert {path.name for path in folder.iterdir()} == {"phone.db", "album.jpg"}
    assert at(folder, 1e9) == before
    held = (folder / "phone.db").read_bytes()
    assert np.full(4, 1234567, "<u4").tobytes() not in held
    with UsageLog(folder / "phone.db", 10, 100.0) as log:
        assert not log.counts().any()
    assert json.loads(run("erase", str(folder), "--yes", "--json"))["deleted"] == []


def test_erasing_asks_first(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["phone", "erase", str(folder)], input="n\n")
    assert refused.exit_code == 1
    assert all((folder / name).exists() for name in FILES)
    run("erase", str(folder), typed="y\n")
    assert not any((folder / name).exists() for name in FILES)


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        *product(["status", "on", "erase"], ["missing", "empty", "other", "album"]),
        *product(["off"], ["other", "album"]),
    ],
)
def test_another_folder_is_refused_and_left_as_it_was(
    command: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if wrong != "missing":
        place.mkdir()
    if wrong == "other":
        connection = sqlite3.connect(place / "phone.db")
        connection.execute("CREATE TABLE contacts (name TEXT)")
        connection.close()
    if wrong == "album":
        (place / "cat.jpg").write_bytes(b"cat")
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["fedcaptor", "phone", command, str(place)])
    with pytest.raises(SystemExit) as ended:
        main()
    text = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert "is not a phone's: it has no ledger" in text if wrong == "other" else "is no phone's folder" in text
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_file_is_said_to_be_damaged(folder: Path, tmp_path: Path) -> None:
    (folder / "phone.db").write_bytes(b"not a database" * 100)
    result = CliRunner().invoke(app, ["phone", "status", str(folder)])
    assert "is damaged" in str(result.exception)
    with pytest.raises(Exception, match="is damaged"):
        open_ledger(folder, Privacy())


def test_the_key_is_made_once_and_its_public_half_printed(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    made, again = (CliRunner().invoke(app, ["phone", "key", str(file)]).output for _ in range(2))
    assert made == again == (tmp_path / "node.key.pub").read_text()
    assert made.startswith("ecdsa-sha2-nistp384 ")
    assert file.stat().st_mode & 0o777 == 0o600
