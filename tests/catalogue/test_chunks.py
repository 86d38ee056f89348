"""Files are cut at their tensors, so that what did not change is found again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.catalogue.chunks import MOST, cut
from tests.catalogue.serving import random_file, weights


def test_chunks_are_the_file(tmp_path: Path) -> None:
    for path in (weights(tmp_path / "a", 1), random_file(tmp_path / "b", 2 * MOST + 5), random_file(tmp_path / "c", 0)):
        found, content, place = cut(path), path.read_bytes(), 0
        assert (found.size, found.digest) == (len(content), hashlib.sha256(content).hexdigest())
        for chunk in found.chunks:
            assert 0 < chunk.size <= MOST
            assert hashlib.sha256(content[place : place + chunk.size]).hexdigest() == chunk.digest
            place += chunk.size
        assert place == len(content)


def test_a_layer_that_changes_is_one_chunk_that_changes(tmp_path: Path) -> None:
    old, new = cut(weights(tmp_path / "old", 1)), cut(weights(tmp_path / "new", 1, changed=2))
    assert len(new.chunks) == 7  # header and six layers
    assert len(set(new.chunks) - set(old.chunks)) == 2


def test_a_tensor_that_moves_is_found_again(tmp_path: Path) -> None:
    old, new = cut(weights(tmp_path / "old", 1)), cut(weights(tmp_path / "new", 1, layers=7))
    assert len(set(new.chunks) - set(old.chunks)) == 2  # header and the new layer


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes_are_cut_somehow(tmp_path_factory: pytest.TempPathFactory, header: bytes, body: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    assert sum(chunk.size for chunk in cut(path).chunks) == path.stat().st_size


@pytest.mark.parametrize("offsets", [[0, 1e9], [0, -5], ["a", "b"], [], 7, None, [0, 1 << 70]])
def test_a_header_that_lies_is_no_header(tmp_path: Path, offsets: object) -> None:
    header = json.dumps({"x": {"data_offsets": offsets}}).encode()
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    assert [chunk.size for chunk in cut(path).chunks] == [path.stat().st_size]
