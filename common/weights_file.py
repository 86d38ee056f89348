"""Store weights as safetensors in half precision and read them as float32 in the network's order, without torch."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container
from pathlib import Path

import numpy as np
import safetensors
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedcaptor.common.arrays import Array
from fedcaptor.common.errors import ModelError
from fedcaptor.common.files import no_file, write_whole
from fedcaptor.common.groups import State

_ORDER = "fedcaptor.tensors"  # metadata key: the file format sorts tensors, the network's order is kept here


def load_state(path: Path) -> tuple[State, dict[str, str]]:
    """Read a safetensors file: numpy arrays in the network's order, floats widened to float32, and the metadata.

    A file from elsewhere is ordered by name, numbers by value. Raises ModelError when the file is missing or cannot be
    read.
    """
    if (problem := no_file(path)) is not None:
        raise ModelError(problem)
    try:
        with safe_open(path, framework="np") as file:
            metadata, names = dict(file.metadata() or {}), list(file.keys())
            brain = {name for name in names if file.get_slice(name).get_dtype() == "BF16"}
            found = {name: _widened(file.get_tensor(name)) for name in names if name not in brain}
        if brain:
            found |= _brain_floats(path, brain)
    except (SafetensorError, OSError, TypeError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}): give weights in that format") from error
    order = _order(metadata.pop(_ORDER, "null"))
    if sorted(order) != sorted(found):
        order = sorted(found, key=_natural)
    return {key: found[key] for key in order}, metadata


def _order(text: str) -> list[str]:
    """Read the names of tensors in the network's order; none where the text is something else."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def require_finite(state: State, where: object) -> None:
    """Check that all weights are finite numbers; raises ModelError, which says `where` and names the tensor, if not."""
    for key, array in state.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            count = array.size - np.isfinite(array).sum()
            raise ModelError(
                f"{where}: {count} of {array.size} values of tensor {key} are not finite, all must be: give other "
                "weights, or train again with a lower learning rate"
            )


def statistic(metadata: dict[str, str], key: str, default: float, channels: int) -> tuple[float, ...]:
    """Read `mean` or `std` of each input channel from a weights file's metadata, `default` where absent.

    Raises ModelError when there are not as many values as `channels`.
    """
    values = ast.literal_eval(metadata[key]) if key in metadata else (default,) * channels
    if len(values) != channels:
        raise ModelError(f"weights give {len(values)} values of {key}, the images have {channels} channels")
    return tuple(float(v) for v in values)


def save_state(path: Path, state: State, metadata: dict[str, str], private: bool = False) -> None:
    """Write tensors atomically: floats in half precision, others unchanged; `private` as for `files.replacing`.

    A tensor with values beyond half precision (a large variance) is written in single precision.
    """
    write_whole(path, content_of(state, metadata), private=private)


def content_of(state: State, metadata: dict[str, str]) -> bytes:
    """Return what `save_state` writes."""
    arrays = {name: narrow(np.asarray(array)) for name, array in state.items()}
    return save(arrays, {**metadata, _ORDER: json.dumps(list(state))})


def narrow(array: Array) -> Array:
    """Return a copy in the precision that files have: float16, or float32 where a value is beyond it."""
    if not np.issubdtype(array.dtype, np.floating):
        return array.copy(order="C")
    with np.errstate(over="ignore"):
        half = array.astype(np.float16, order="C")
    return half if np.array_equal(np.isfinite(half), np.isfinite(array)) else array.astype(np.float32, order="C")


def _natural(key: str) -> list[tuple[int, str]]:
    """Numbers of more digits than any index are compared in pieces."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", key)]


def _widened(array: Array) -> Array:
    """Return a copy, so that nothing refers to the mapped file."""
    return np.array(array, dtype=np.float32 if np.issubdtype(array.dtype, np.floating) else array.dtype)


def _brain_floats(path: Path, names: Container[str]) -> dict[str, Array]:
    """Read the bfloat16 tensors `names`: numpy lacks the type, which is the upper half of a float32."""
    found: dict[str, Array] = {}
    for name, stored in safetensors.deserialize(path.read_bytes()):
        if name in names:
            words = np.frombuffer(stored["data"], "<u2").astype(np.uint32) << np.uint32(16)
            found[name] = words.view(np.float32).reshape(stored["shape"])
    return found
