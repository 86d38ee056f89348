"""Give a phone its unlabelled images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Images
from fedcaptor.common.data.source import decode
from fedcaptor.common.errors import DataError


class ImageFeed(Protocol):
    """Give a day's images, uint8 [N, H, W, C]: `use` to learn the owner's habits from, `check` as validation set.

    `corrections` [N]: the label to which the owner corrected the prediction of each use image, -1 where nothing.
    """

    def use(self, day: int) -> Images: ...

    def check(self, day: int) -> Images: ...

    def corrections(self, day: int) -> npt.NDArray[np.int16]: ...


class FolderFeed:
    """Read a device's own image folder, without labels: a third of the files, by hash of their bytes, is for checking.

    With so few files that one part would be empty, all are to learn from. Raises DataError when there is no image or
    one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def use(self, day: int) -> Images:
        return decode(self._folder, self._parts()[0])

    def check(self, day: int) -> Images:
        use, check = self._parts()
        return decode(self._folder, check) if check else decode(self._folder, use[:1])[:0]

    def corrections(self, day: int) -> npt.NDArray[np.int16]:
        return np.full(len(self._parts()[0]), -1, dtype=np.int16)

    def _parts(self) -> tuple[list[Path], list[Path]]:
        files = sorted(p for p in self._folder.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise DataError(f"{self._folder} has no images, at least one is needed: add images")
        check = [p for p in files if hashlib.sha256(p.read_bytes()).digest()[0] % 3 == 0]
        use = [p for p in files if p not in set(check)]
        return (use, check) if use else (files, [])
