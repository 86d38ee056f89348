"""Give a phone its unlabelled images."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Images, evenly
from fedcaptor.common.data.source import entries, photo
from fedcaptor.common.errors import DataError

logger = logging.getLogger(__name__)


class ImageFeed(Protocol):
    """Give a day's images, uint8 [N, H, W, C]: `use` to learn the owner's habits from, `check` as validation set.

    `corrections` [N]: the label to which the owner corrected the prediction of each use image, -1 where nothing.
    """

    def use(self, day: int) -> Images: ...

    def check(self, day: int) -> Images: ...

    def corrections(self, day: int) -> npt.NDArray[np.int16]: ...


class FolderFeed:
    """Read a device's own image folder, without labels: a third of the images, by hash of their bytes, is for checking.

    With so few images that one part would be empty, all are to learn from. `shape`: of the base model's images
    (H, W, C), to which photos of any size are turned upright, cropped and scaled (`photo`). `most`: the newest so many
    files are read. Files that are no image, as when the camera has not written one whole yet, are skipped and counted
    in the log, once a day. Raises DataError when none is left.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], most: int) -> None:
        self._folder, self._shape, self._most = folder, shape, most
        self._read: tuple[int, Images, Images] | None = None

    def use(self, day: int) -> Images:
        return self._parts(day)[0]

    def check(self, day: int) -> Images:
        return self._parts(day)[1]

    def corrections(self, day: int) -> npt.NDArray[np.int16]:
        return np.full(len(self.use(day)), -1, dtype=np.int16)

    def _parts(self, day: int) -> tuple[Images, Images]:
        """Return the images to learn from and those for checking; the folder is read once a day."""
        if self._read is None or self._read[0] != day:
            self._read = (day, *self._split())
        return self._read[1:]

    def _split(self) -> tuple[Images, Images]:
        files = [path for path in entries(self._folder) if path.is_file()]
        files = sorted(sorted(files, key=_changed)[-self._most :])
        use: list[Images] = []
        check: list[Images] = []
        for file in files:
            try:
                image = photo(file, self._shape)
                with file.open("rb") as content:
                    part = hashlib.file_digest(content, "sha256").digest()[0] % 3
                (use if part else check).append(image)
            except (DataError, OSError) as error:
                logger.debug("skipped: %s", error)
        if skipped := len(files) - len(use) - len(check):
            logger.warning("%d of %d files are no whole images: skipped", skipped, len(files))
        if not use and not check:
            raise DataError(f"{self._folder} has no images, at least one is needed: add images")
        if not use:
            use, check = check, []
        return np.stack(use), np.stack(check) if check else np.zeros((0, *self._shape), np.uint8)


def spread(images: Images, most: int) -> Images:
    """Return `most` of the images, evenly spread, or all where they are fewer."""
    return images[evenly(len(images), most)] if len(images) > most else images


def _changed(file: Path) -> float:
    """Return when a file was changed last; 0 for one that is gone."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
