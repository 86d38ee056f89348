"""Where a phone's images come from: a device's folder, or a share of the simulated population."""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcaptor.client import images
from fedcaptor.client.images import FolderFeed, spread
from fedcaptor.common.data.source import photo
from fedcaptor.common.errors import DataError
from fedcaptor.simulations.phones import MappedFeed

SHAPE = (3, 4, 1)


def pictures(folder: Path, count: int, first: int = 0) -> dict[str, int]:
    """Grey pictures by name, every one of its own shade."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{number:02d}.png": number for number in range(first, first + count)}
    for name, shade in names.items():
        Image.new("L", (4, 3), shade).save(folder / name)
    return names


def test_a_third_of_a_folder_by_hash_is_for_checking(tmp_path: Path) -> None:
    names = pictures(tmp_path, 60)
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "folder").mkdir()
    feed = FolderFeed(tmp_path, SHAPE, 100)
    use, check = feed.use(1), feed.check(1)
    assert use.shape[1:] == (3, 4, 1)
    expected = {
        shade for name, shade in names.items() if hashlib.sha256((tmp_path / name).read_bytes()).digest()[0] % 3 == 0
    }
    assert set(check[:, 0, 0, 0].tolist()) == expected
    assert set(use[:, 0, 0, 0].tolist()) == set(range(60)) - expected
    assert 8 < len(check) < 32
    assert feed.corrections(1).tolist() == [-1] * len(use)


def test_names_and_newcomers_move_no_picture_to_the_other_part(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 30)
    before = set(FolderFeed(tmp_path / "a", SHAPE, 100).check(1)[:, 0, 0, 0].tolist())
    for file in sorted((tmp_path / "a").iterdir()):
        file.rename(file.with_name(f"renamed-{file.name}"))
    pictures(tmp_path / "a", 30, first=30)
    after = set(FolderFeed(tmp_path / "a", SHAPE, 100).check(2)[:, 0, 0, 0].tolist())
    assert {shade for shade in after if shade < 30} == before


def test_an_empty_folder_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no images, .*: add images"):
        FolderFeed(tmp_path, SHAPE, 100).use(1)


def test_a_file_that_is_no_such_image_is_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A half-written photo and a file that is none must not silence the phone."""
    pictures(tmp_path, 30)
    expected = sorted(FolderFeed(tmp_path, SHAPE, 100).use(1).ravel().tolist())
    noise = np.random.default_rng(0).integers(0, 256, (3, 4), np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:50])
    Image.new("I;16", (4, 3)).save(tmp_path / "deep.png")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    feed = FolderFeed(tmp_path, SHAPE, 100)
    assert sorted(feed.use(1).ravel().tolist()) == expected
    feed.check(1), feed.corrections(1)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["4 of 34 files are no whole images: skipped"]


def test_images_have_the_colours_that_the_network_sees(tmp_path: Path) -> None:
    pictures(tmp_path, 1, first=9)
    Image.new("RGB", (4, 3), (9, 9, 9)).save(tmp_path / "colour.png")
    for channels in (1, 3):
        use = FolderFeed(tmp_path, (3, 4, channels), 100).use(1)
        assert use.shape[1:] == (3, 4, channels)
        assert (use == 9).all()


def test_photos_are_turned_upright_cropped_and_scaled(tmp_path: Path) -> None:
    """A bright stripe at the left of a phone held sideways is at the top of what its owner sees."""
    pixels = np.zeros((300, 400), np.uint8)
    pixels[:, :100] = 200
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by 90°
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=turned, quality=95)
    (image,) = FolderFeed(tmp_path, (6, 6, 1), 100).use(1)
    assert image[0].mean() > 150  # the sides are cropped: a quarter of the middle remains above
    assert image[2:].mean() < 20


def test_a_part_of_many_images_is_spread_evenly() -> None:
    assert spread(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert spread(np.arange(3), 4).tolist() == [0, 1, 2]


def test_the_newest_files_are_read(tmp_path: Path) -> None:
    for number, shade in enumerate(pictures(tmp_path, 9).values()):
        os.utime(tmp_path / f"{shade:02d}.png", (1000 - number, 1000 - number))
    feed = FolderFeed(tmp_path, SHAPE, 4)
    assert sorted({*feed.use(1)[:, 0, 0, 0].tolist(), *feed.check(1)[:, 0, 0, 0].tolist()}) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [(9000, 9000), (1, 1 << 26)])
def test_a_photo_that_would_take_too_much_memory_is_skipped(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures(tmp_path, 1)
    header = (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    (tmp_path / "bomb.png").write_bytes(header)
    tracemalloc.start()
    assert len(FolderFeed(tmp_path, SHAPE, 100).use(1)) == 1
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_folder_is_read_once_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path, 4)
    opened: list[str] = []
    monkeypatch.setattr(images, "photo", lambda file, shape: opened.append(file.name) or photo(file, shape))
    feed = FolderFeed(tmp_path, SHAPE, 100)
    feed.use(1), feed.check(1), feed.corrections(1), feed.use(1)
    assert sorted(opened) == [f"{number:02d}.png" for number in range(4)]
    pictures(tmp_path, 1, first=4)
    assert len(feed.use(2)) + len(feed.check(2)) == 5


def test_a_handful_of_images_is_enough(tmp_path: Path) -> None:
    """Whatever their hashes: with one image there is something to learn from, and perhaps nothing to check with."""
    for number in range(8):
        pictures(tmp_path / str(number), 1, first=number)
        feed = FolderFeed(tmp_path / str(number), SHAPE, 100)
        assert (feed.use(1).shape, feed.check(1).shape) == ((1, 3, 4, 1), (0, 3, 4, 1))


@pytest.fixture
def population(tmp_path: Path) -> Path:
    """Two rounds, two phones, up to three images each."""
    np.save(tmp_path / "images.npy", np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1))
    index = np.array([[[0, 1, -1], [2, 2, 2]], [[3, -1, -1], [-1, -1, -1]]], dtype=np.int32)
    np.save(tmp_path / "use.npy", index)
    np.save(tmp_path / "check.npy", index[:, ::-1])
    np.save(tmp_path / "corrections.npy", np.where(index >= 0, 7, -1).astype(np.int16))
    return tmp_path


def test_a_simulated_phone_reads_its_own_share(population: Path) -> None:
    first, second = MappedFeed(population, 0), MappedFeed(population, 1)
    assert first.use(1).ravel().tolist() == [0, 1]
    assert first.use(2).ravel().tolist() == [3]
    assert second.use(1).ravel().tolist() == [2, 2, 2]
    assert second.check(1).ravel().tolist() == [0, 1]
    assert first.corrections(1).tolist() == [7, 7]
    assert len(second.use(2)) == 0
    assert second.corrections(2).shape == (0,)
    for round in (0, 3):
        with pytest.raises(DataError, match=f"round {round} has no images, must lie in 1..2"):
            first.use(round)


def test_nothing_corrected_is_stored_small(population: Path) -> None:
    np.save(population / "corrections.npy", np.full((2, 1, 1), -1, dtype=np.int16))
    assert MappedFeed(population, 0).corrections(1).tolist() == [-1, -1]
