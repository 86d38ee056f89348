"""A download ends with the right bytes or leaves the old file, whatever the network and the server do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedcaptor.client.download import ATTEMPTS, download, is_current, patiently
from fedcaptor.common.catalogue import chunks
from fedcaptor.common.catalogue.chunks import cut
from fedcaptor.common.catalogue.manifest import FileEntry
from fedcaptor.common.errors import LinkError, StateError, WireError
from tests.catalogue.serving import weights


class Network:
    """Gives a file's bytes in small pieces; each read is cut after so many of `budgets` bytes, then no more."""

    def __init__(self, content: bytes, budgets: list[int] | None = None) -> None:
        self.content, self.budgets, self.asked = content, list(budgets or []), []

    def __call__(self, resource: str, offset: int, limit: int) -> Iterator[bytes]:
        self.asked.append((offset, limit))
        budget = self.budgets.pop(0) if self.budgets else len(self.content)
        wanted = self.content[offset : offset + limit]
        for place in range(0, min(len(wanted), budget), 700):
            yield wanted[place : min(place + 700, budget)]
        if budget < len(wanted):
            raise LinkError("cut")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MOST", 5000)


def no_sleep(seconds: float) -> None:
    pass


def described(path: Path) -> tuple[FileEntry, bytes]:
    return FileEntry.of(path.name, cut(path)), path.read_bytes()


@example(0, [], (24_337, False))  # a byte longer than the file
@given(
    st.integers(0, 4),
    st.lists(st.integers(0, 20_000), max_size=40),
    st.one_of(st.none(), st.tuples(st.integers(0, 30_000), st.booleans())),
)
def test_any_cuts_and_leftovers_end_with_the_right_bytes(
    tmp_path_factory: pytest.TempPathFactory, changed: int, budgets: list[int], left: tuple[int, bool] | None
) -> None:
    folder = tmp_path_factory.mktemp("phone")
    entry, content = described(weights(folder / "new", 1, changed, layers=4, size=3000))
    target = weights(folder / "base.safetensors", 1, layers=4, size=3000)
    if left is not None:  # of a process that was killed, perhaps with bytes that never reached the disk
        size, right = left
        partial = folder / f".base.safetensors.{entry.digest[:16]}.partial"
        partial.write_bytes(content[:size] if right else bytes(size))
    # A cut, these, and wrong bytes that were left make one attempt less than are too many.
    network = Network(content, [budget for budget in budgets if budget] + [0] * (ATTEMPTS - 3))
    found = download(entry, target, network, no_sleep)
    found.install()
    assert is_current(entry, target)
    assert target.read_bytes() == content
    assert [path.name for path in folder.glob(".*")] == []
    if left is None:
        assert found.received == sum(chunk.size for chunk in set(entry.pieces()) - set(old_chunks(folder)))


def old_chunks(folder: Path) -> tuple[chunks.Chunk, ...]:
    return cut(weights(folder / "old", 1, layers=4, size=3000)).chunks


def test_ranges_that_the_phone_has_are_not_asked_for(tmp_path: Path) -> None:
    entry, content = described(weights(tmp_path / "new", 1, changed=1))
    target = weights(tmp_path / "base", 1)
    network = Network(content)
    download(entry, target, network, no_sleep).install()
    assert network.asked == [(len(content) - 80_000, 80_000)]  # the last layer, by one read


@pytest.mark.parametrize("place", [0, 4_000, 100_000, -1])
def test_wrong_bytes_are_never_installed(tmp_path: Path, place: int) -> None:
    entry, content = described(weights(tmp_path / "new", 1, size=10_000))
    target = weights(tmp_path / "base", 7)
    before = target.read_bytes()
    lie = bytearray(content)
    lie[place] ^= 1
    with pytest.raises(LinkError, match="bytes that are not those of new"):
        download(entry, target, Network(bytes(lie)), no_sleep)
    assert target.read_bytes() == before
    found = download(entry, target, Network(content), no_sleep)  # an honest server goes on from what was right
    assert found.received <= len(content)
    assert found.file.read_bytes() == content


@pytest.mark.parametrize("sent", ["more", "less", "nothing"])
def test_streams_of_another_length_are_not_taken(tmp_path: Path, sent: str) -> None:
    entry, content = described(weights(tmp_path / "new", 1, size=1000))
    answers = {"more": [content + b"x"], "less": [content[:-1]], "nothing": []}

    def read(resource: str, offset: int, limit: int) -> Iterator[bytes]:
        yield from (piece[offset:] for piece in answers[sent])

    with pytest.raises(LinkError):
        download(entry, tmp_path / "base", read, no_sleep)
    assert not (tmp_path / "base").exists()


def test_a_manifest_that_contradicts_itself_installs_nothing(tmp_path: Path) -> None:
    entry, content = described(weights(tmp_path / "new", 1, size=1000))
    with pytest.raises(WireError, match="not those of its digest"):
        download(entry.model_copy(update={"digest": "a" * 64}), tmp_path / "base", Network(content), no_sleep)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    entry, content = described(weights(tmp_path / "new", 1))
    target = weights(tmp_path / "base", 7, size=100)
    before = target.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system then refuses to write more
    try:
        with pytest.raises(StateError, match=r"cannot be fetched .*the old file stays"):
            download(entry, target, Network(content), no_sleep)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "new"]


def test_leftovers_of_other_versions_go(tmp_path: Path) -> None:
    entry, content = described(weights(tmp_path / "new", 1, size=1000))
    (tmp_path / ".base.0123456789abcdef.partial").write_bytes(bytes(1000))
    download(entry, tmp_path / "base", Network(content), no_sleep).install()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "new"]


def test_pauses_grow_and_begin_anew_once_something_came() -> None:
    pauses: list[float] = []
    sizes = iter([0, *[0] * 10, *[5] * 100])
    size = 0

    def act() -> None:
        nonlocal size
        size = next(sizes)
        raise LinkError("cut")

    with pytest.raises(LinkError):
        patiently(act, lambda: size, pauses.append)
    assert len(pauses) == ATTEMPTS - 1
    assert all(2.0**number / 2 <= pause <= 2.0**number for number, pause in enumerate(pauses))
    tries: list[float] = []
    with pytest.raises(LinkError):
        patiently(lambda: (_ for _ in ()).throw(LinkError("refused", again=False)), lambda: 0, tries.append)
    assert tries == []


def test_progress_resets_the_count() -> None:
    rng, size, calls = random.Random(0), 0, 0

    def act() -> str:
        nonlocal size, calls
        calls += 1
        if calls == 100:
            return "done"
        size += rng.choice([0, 1, 1])
        raise LinkError("cut")

    assert patiently(act, lambda: size, no_sleep) == "done"
