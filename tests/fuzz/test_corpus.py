"""Every stored input passes through its target, and valid inputs reach its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import NAMES, target

CORPUS = Path(__file__).parent / "corpus"
NOT_MENDED: set[str] = set()
"""Inputs (`target/file`) that break their target so far."""


@pytest.mark.parametrize("name", NAMES)
def test_stored_inputs_meet_declared_errors_alone(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert any(path.name.startswith("seed-") for path in inputs), "python -m tests.fuzz --write-corpus"
    for path in inputs:
        if f"{name}/{path.name}" in NOT_MENDED:
            continue
        try:
            target(name).one(path.read_bytes())
        except Exception as error:
            error.add_note(f"the input is {path}")
            raise


@pytest.mark.parametrize("path", sorted(NOT_MENDED))
@pytest.mark.xfail(reason="not mended yet; take it off the list when it passes")
def test_known_bugs(path: str) -> None:
    target(path.partition("/")[0]).one((CORPUS / path).read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_valid_inputs_are_accepted(name: str) -> None:
    for seed, data in target(name).seeds().items():
        assert target(name).one(data), seed


@pytest.mark.parametrize("name", NAMES)
def test_cut_and_changed_inputs_meet_declared_errors_alone(name: str) -> None:
    """A glance at what the fuzzer does, where it is not installed."""
    one = target(name).one
    for data in target(name).seeds().values():
        for at in range(0, len(data), max(1, len(data) // 8)):
            one(data[:at])
            one(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
