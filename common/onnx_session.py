"""Run programs with ONNX Runtime on one thread, so that results do not depend on the machine's cores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, TensorProto

from fedcaptor.common.arrays import Array

Values = dict[str, npt.NDArray[np.float32]]


class Session:
    """Run one program. Weights that it declares are shared, not copied: they must not change meanwhile."""

    def __init__(self, program: ModelProto, tensors: Mapping[str, Array]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the largest batch's maps
        names = [t.name for t in program.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        self._weights = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensors[name])) for name in names
        ]
        options.add_external_initializers(names, self._weights)
        self._inputs = {value.name for value in program.graph.input}
        self._outputs = [value.name for value in program.graph.output]
        self._session = onnxruntime.InferenceSession(
            program.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, values: Mapping[str, Array]) -> Values:
        """Compute the program's outputs from `values`, of which it takes those that it reads."""
        given = {name: np.ascontiguousarray(values[name]) for name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))


def in_batches(session: Session, values: Mapping[str, Array], batch: int) -> Values:
    """Run a program on values [N, …], so many images at a time; N is at least 1."""
    count = len(next(iter(values.values())))
    found = [
        session.run({name: value[start : start + batch] for name, value in values.items()})
        for start in range(0, count, batch)
    ]
    return found[0] if len(found) == 1 else {name: np.concatenate([part[name] for part in found]) for name in found[0]}
