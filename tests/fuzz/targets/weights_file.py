"""Weights: any file for a safetensors one."""

from __future__ import annotations

import safetensors.numpy

from fedcaptor.common.errors import ModelError
from fedcaptor.common.weights_file import content_of, load_state
from tests.fuzz.files import file_of
from tests.fuzz.parts import safetensors_file, safetensors_parts
from tests.fuzz.targets.submodel_file import state


def seeds() -> dict[str, bytes]:
    others = safetensors.numpy.save(state()).replace(b'"F32"', b'"I32"', 1)
    return {"ours": safetensors_parts(content_of(state(), {"model": "small"})), "of-others": safetensors_parts(others)}


def one(data: bytes) -> bool:
    with file_of(safetensors_file(data), "weights.safetensors") as path:
        try:
            load_state(path)
        except ModelError:
            return False
    return True
