"""The note of the last personalisation: one file, the same keys for ever, damage said by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedcaptor.client.folder import OUTCOME_FILE
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.errors import StateError

NOTE = Outcome(
    kind="personal",
    classes=(1, 4),
    prior=(0.05, 0.45, 0.05, 0.4, 0.05),
    agreement=0.97,
    agreement_cluster=0.9,
    threshold=None,
    escalated=0.125,
    cluster=1,
    macs=0.32,
    parameters=0.2,
    plan="{}",
    digest="ab",
    base_fetches=2,
    larger_file=None,
    outputs=(1, 4),
)


def test_a_note_comes_back_and_is_for_its_owner_s_eyes_alone(tmp_path: Path) -> None:
    assert Outcome.read(tmp_path) is None
    NOTE.write(tmp_path)
    assert Outcome.read(tmp_path) == NOTE
    assert (tmp_path / OUTCOME_FILE).stat().st_mode & 0o777 == 0o600


def test_the_file_has_the_keys_that_phones_have_always_written_then_later_ones(tmp_path: Path) -> None:
    """In this order, as `json.dumps` writes them: the file's size counts as storage."""
    NOTE.write(tmp_path)
    expected = {
        "kind": "personal", "classes": [1, 4], "prior": [0.05, 0.45, 0.05, 0.4, 0.05], "agreement": 0.97,
        "agreement_cluster": 0.9, "threshold": None, "escalated": 0.125, "cluster": 1, "macs": 0.32,
        "parameters": 0.2, "plan": "{}", "digest": "ab", "larger": None, "larger_digest": None, "base_fetches": 2,
        "file": "submodel.safetensors", "larger_file": None, "outputs": [1, 4],
        "precision": "float32", "drifted": False,
    }  # fmt: skip
    assert (tmp_path / OUTCOME_FILE).read_text() == json.dumps(expected)


def test_a_note_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    (tmp_path / OUTCOME_FILE).write_text(json.dumps(NOTE.model_dump(exclude={"drifted"})))
    assert Outcome.read(tmp_path) == NOTE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half a no",
        b"\xff\xfe",
        b"[]",
        b'{"kind": "personal"}',
        NOTE.model_dump_json().replace("personal", "own").encode(),
        NOTE.model_dump_json().replace("0.97", "1.97").encode(),
        NOTE.model_dump_json().replace("cluster", "class").encode(),
    ],
)
def test_a_damaged_note_is_named_with_the_remedy_and_without_what_it_holds(content: bytes, tmp_path: Path) -> None:
    (tmp_path / OUTCOME_FILE).write_bytes(content)
    with pytest.raises(
        StateError, match=r"outcome\.json is damaged \(.+\): delete it, the phone personalises again"
    ) as e:
        Outcome.read(tmp_path)
    assert "0.45" not in str(e.value)


def test_a_note_is_a_value() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        NOTE.cluster = 2  # type: ignore[misc]
