"""Choose which of the server's reference images phones receive, and how they are coded, within a number of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.data.mosaic import code
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.server.planning import Reference


@dataclass(frozen=True, eq=False)
class Pack:
    """Hold what phones receive of the reference images.

    `file`: a PNG or JPEG picture of all of them, uint8 [bytes], `labels` int32 [R]; `coding`: "png" or "jpeg"; `each`:
    the most images of a class.
    """

    file: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]
    coding: str
    each: int

    @property
    def tensors(self) -> Tensors:
        """Return what is sent, as `DeliverRequest` names it."""
        return {"reference": self.file, "reference_labels": self.labels}

    @property
    def nbytes(self) -> int:
        """Return the bytes that a phone fetches."""
        return self.file.nbytes + self.labels.nbytes


def packed(reference: Reference, each: int, most: float, seed: int) -> Pack | None:
    """Pack up to `each` images of every class within `most` bytes: as PNG, else as JPEG, else fewer as JPEG.

    Returns None where not one image of each class fits, or none is asked for.
    """
    lossless = True
    while each > 0 and len(reference.y):
        chosen = reference.pack(each, stream(seed, Stream.REFERENCE))
        labels = reference.y[chosen].astype(np.int32)
        found = Pack(code(reference.x[chosen], lossless), labels, "png" if lossless else "jpeg", each)
        if found.nbytes <= most:
            return found
        if not lossless:
            each = min(each - 1, int(each * most / found.nbytes))
        lossless = False
    return None
