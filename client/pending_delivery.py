"""Keep the pending delivery, accepted but not personalised with yet, in one file that is removed when it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedcaptor.client.folder import DELIVERY_FILE
from fedcaptor.common.arrays import Tensors
from fedcaptor.common.files import clear_leftovers, replacing
from fedcaptor.common.messages import DeliverRequest

logger = logging.getLogger(__name__)

_REQUEST = "request"  # metadata key


def store(folder: Path, request: DeliverRequest, tensors: Tensors, durable: bool = True) -> None:
    """Store a delivery in place of an earlier one; with `durable` it is there after a power cut too."""
    path = folder / DELIVERY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path, private=True, durable=durable) as temporary:
        temporary.write_bytes(save(arrays, {_REQUEST: request.model_dump_json()}))


def read(folder: Path) -> tuple[DeliverRequest, dict[str, npt.NDArray[Any]]] | None:
    """Read the pending delivery, None where there is none. One that is damaged is removed: the next takes its place."""
    path = folder / DELIVERY_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            request = DeliverRequest.model_validate_json((file.metadata() or {})[_REQUEST])
            return request, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        logger.warning("%s is damaged (%s) and removed: the next delivery takes its place", path, error)
        remove(folder)
        return None


def exists(folder: Path) -> bool:
    """Tell whether there is a pending delivery."""
    return (folder / DELIVERY_FILE).exists()


def remove(folder: Path) -> None:
    """Delete the pending delivery, once its personal step is done."""
    (folder / DELIVERY_FILE).unlink(missing_ok=True)
