"""Where a phone's unlabelled images come from."""

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
    """A round's images, uint8 [N, H, W, C]: `use` to learn the owner from, `check` to decide: keep or fall back.

    `corrections` [N]: what the owner corrected the prediction of each use image to, -1 where nothing.
    """

    def use(self, round: int) -> Images: ...

    def check(self, round: int) -> Images: ...

    def corrections(self, round: int) -> npt.NDArray[np.int16]: ...


class FolderFeed:
    """A device's own image folder: a third of the files, by hash of their bytes, is for checking. No labels."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def use(self, round: int) -> Images:
        return self._part(check=False)

    def check(self, round: int) -> Images:
        return self._part(check=True)

    def corrections(self, round: int) -> npt.NDArray[np.int16]:
        return np.full(len(self.use(round)), -1, dtype=np.int16)

    def _part(self, check: bool) -> Images:
        files = sorted(p for p in self._folder.iterdir() if p.is_file() and not p.name.startswith("."))
        chosen = [p for p in files if (hashlib.sha256(p.read_bytes()).digest()[0] % 3 == 0) == check]
        if not chosen:
            raise DataError(f"{self._folder} has no images for this part, at least a handful are needed: add images")
        return decode(self._folder, chosen)
