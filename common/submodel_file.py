"""Encode a submodel as bytes for a phone: safetensors, padded, decoded against the plan that it must fit."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.weights_file import narrow

Bytes = npt.NDArray[np.uint8]

_LENGTH = struct.Struct("<Q")
_HEADER_BYTES = 1 << 20  # names, shapes and offsets of some thousand tensors, without padding
_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_WHOLE: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8")}  # counters of batch norms


def bucket(size: int) -> int:
    """Return the padded size in bytes: the next multiple of an eighth of the power of two below, at most 1/8 larger."""
    step = 1 << max(size.bit_length() - 4, 3)
    return -(-size // step) * step


def encode(state: State) -> Bytes:
    """Encode tensors as half-precision safetensors of a size bucket's length.

    The format lets its header end in white space: that is the padding, so that the file stays one that any reader
    takes.
    """
    file = safetensors.numpy.save({name: narrow(np.asarray(array)) for name, array in state.items()})
    header = _LENGTH.unpack(file[: _LENGTH.size])[0]
    padding, end = bucket(len(file)) - len(file), _LENGTH.size + header
    padded = _LENGTH.pack(header + padding) + file[_LENGTH.size : end] + b" " * padding + file[end:]
    return np.frombuffer(padded, dtype=np.uint8)


def digest(plan: Plan, file: Bytes) -> str:
    """Hash a file together with its plan (SHA-256, hex), which binds the two."""
    return hashlib.sha256(plan.digest.encode() + file.tobytes()).hexdigest()


def decode(file: Bytes, groups: ChannelGroups, plan: Plan) -> State:
    """Decode the tensors of the submodel that `plan` leaves, floats widened to float32, in the network's order.

    Raises WireError unless the file holds exactly these tensors; its size is checked before anything is taken out.
    """
    shapes = groups.shapes(plan.counts())
    largest = bucket(_HEADER_BYTES + sum(8 * int(np.prod(shape)) for shape in shapes.values()))
    if file.ndim != 1 or file.size > largest:
        raise WireError("oversized", f"the submodel has {file.size} bytes, its plan allows {largest}")
    try:
        found = dict(safetensors.deserialize(file.tobytes()))
    except safetensors.SafetensorError:
        raise WireError("malformed", "the submodel is no safetensors file") from None
    if found.keys() != shapes.keys():
        raise WireError("unexpected_tensor", "the submodel's tensors are not those of this model")
    return {name: _array(name, found[name], shape, groups) for name, shape in shapes.items()}


def _array(name: str, stored: dict[str, Any], shape: tuple[int, ...], groups: ChannelGroups) -> npt.NDArray[Any]:
    """Decode one tensor. Raises WireError for another shape or type, or values that are not finite."""
    if tuple(stored["shape"]) != shape:
        raise WireError("wrong_shape", f"tensor {name} of the submodel has another shape than its plan leaves")
    counter = groups.tensors[name] == ()
    dtype = (_WHOLE if counter else _FLOATS).get(stored["dtype"])
    if dtype is None:
        raise WireError("wrong_dtype", f"tensor {name} of the submodel is {'no int64' if counter else 'no float'}")
    array = np.frombuffer(stored["data"], dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise WireError("nan", f"tensor {name} of the submodel holds a value that is not finite")
    return array.astype(np.int64 if counter else np.float32)
