"""Run programs with ONNX Runtime on one thread, so that results do not depend on the machine's cores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from fedcaptor.common.arrays import Array

Values = dict[str, npt.NDArray[np.float32]]


class Session:
    """Run one program with its weights.

    The weights are inputs, read where they lie: as constants of the program ONNX Runtime would copy them up to three
    times, to fold batch norms and to reorder them. They may change between two runs.
    """

    def __init__(self, program: ModelProto, tensors: Mapping[str, Array]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the largest batch's maps
        self._tensors = tensors
        self._inputs = [value.name for value in program.graph.input]
        self._outputs = [value.name for value in program.graph.output]
        self._session = onnxruntime.InferenceSession(
            program.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, values: Mapping[str, Array]) -> Values:
        """Compute the program's outputs from `values`, of which it takes those that it reads."""
        given = {
            name: np.ascontiguousarray(values[name] if name in values else self._tensors[name]) for name in self._inputs
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))


def in_batches(session: Session, values: Mapping[str, Array], batch: int) -> Values:
    """Run a program on values [N, …], so many images at a time; N is at least 1."""
    count = len(next(iter(values.values())))
    found: Values = {}
    for start in range(0, count, batch):
        for name, part in session.run({name: value[start : start + batch] for name, value in values.items()}).items():
            if start == 0:
                found[name] = np.empty((count, *part.shape[1:]), part.dtype)
            found[name][start : start + batch] = part
    return found
