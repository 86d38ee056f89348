"""What pruning brings where a network runs: latency, peak memory and modelled energy, full against pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
from typer import Option

from benchmarks import executorch_program
from benchmarks.alone import FIGURES, Call, alone, image
from benchmarks.command import SHARED, Benchmark
from benchmarks.last_call import remembers_last_call
from benchmarks.lite0 import MODEL as LITE0
from benchmarks.options import Budgets, Models
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers, ratios
from benchmarks.submodels import random_base, random_plans
from fedcaptor.client.measure import Request, measured_alone
from fedcaptor.client.onnx_engine import Network, OnnxEngine
from fedcaptor.client.program import example, load
from fedcaptor.common.energy import energy_ratio
from fedcaptor.common.errors import ConfigError, ModelError, PlanError
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.timing import LatencyRatio, latency_ratio
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.latency import one_thread
from fedcaptor.common.torch_engine.network_graph import network_graph
from fedcaptor.common.torch_engine.registry import made_for
from fedcaptor.common.torch_engine.standalone import Standalone

TORCH, SINGLE, INT8 = ("torch", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8")
EXECUTORCH = ("executorch", "float32")
PROGRAMS = (TORCH, SINGLE, INT8, EXECUTORCH)
OWN = {LITE0: (1000, (3, 64, 64))}
"""Classes and images of networks that the registry does not have."""

CAPTOR = {"vgg16": (0.405, 0.379), "alexnet": (0.428, 0.376)}
"""Savings of MACs and of energy that CAPTOR (Qin et al., ASP-DAC 2019) reports, by network."""

CALIBRATION = 8  # images that ranges of eight bits are measured on: their values do not change the time


@dataclass(frozen=True, kw_only=True)
class OnDevice(Benchmark):
    """Latency, peak memory and modelled energy of networks and their pruned versions, on this machine, one image.

    The same share of every layer is kept; weights are random, which time does not depend on. Ratios are medians of
    pairs that run in turns, in processor seconds of one thread, so that other programs disturb little; milliseconds
    are by the clock on the wall, and want a quiet machine. Memory is that of a process with one network alone.

    Example: python -m benchmarks on_device --json benchmarks/results/on_device.json
    """

    models: Models = f"vgg16,alexnet,resnet56,torchvision/mobilenet_v2,{LITE0}"
    macs: Budgets = "0.5,0.3,0.2"
    runtimes: Annotated[
        str, Option(help=f"torch, onnxruntime, executorch (by XNNPACK: pip install {executorch_program.PACKAGE}).")
    ] = "torch,onnxruntime"
    multiples: Annotated[
        str, Option(help="Kept channels are multiples of it. All but the last are for onnxruntime float32 alone.")
    ] = "8,16"
    seconds: Annotated[float, Option(help="Seconds in which a pair runs in turns, and a program alone."), SHARED] = 0.7
    seed: Annotated[int, Option(min=0, help="Weights and kept channels follow from it."), SHARED] = 0

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), "onnxruntime": onnxruntime.__version__, "threads": 1}

    @property
    def _programs(self) -> list[tuple[str, str]]:
        wanted, known = self.runtimes.split(","), dict(PROGRAMS)
        if unknown := set(wanted) - set(known):
            raise ConfigError(f"runtime {unknown.pop()!r} is unknown, known are {', '.join(known)}")
        return [program for program in PROGRAMS if program[0] in wanted]

    def row_keys(self) -> list[Row]:
        *coarser, last = numbers(self.multiples)
        keys: list[Row] = []
        for model in self.models.split(","):
            for runtime, precision in self._programs:
                told = {"model": model, "runtime": runtime, "precision": precision}
                keys.append({**told, "multiple": 1, "macs_target": 1.0})
                for multiple in [*coarser, last] if (runtime, precision) == SINGLE else [last]:
                    keys += [{**told, "multiple": multiple, "macs_target": macs} for macs in ratios(self.macs)]
            if model in CAPTOR:
                keys.append({"model": model, "reported": "CAPTOR"})
        return keys

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Any]:
        if EXECUTORCH in self._programs:
            executorch_program.require()
        onnxruntime.set_default_logger_severity(3)
        with TemporaryDirectory(prefix="fedcaptor-on-device-") as folder, one_thread():
            yield _Measurement(self.seconds, self.seed, Path(folder), on_phase).measure


@dataclass(frozen=True, eq=False)
class _Program:
    """A network as a runtime runs it: `call` for one image in this process; `file`: for a process of its own."""

    call: Call
    file: Path


@dataclass(eq=False)
class _Measurement:
    """Measures rows; those of a network come together and share it."""

    seconds: float
    seed: int
    folder: Path
    on_phase: OnPhase

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the figures of one row; None where no plan has so few MACs."""
        base = self._base(key["model"])
        if "reported" in key:
            return self._reported(base, *CAPTOR[key["model"]])
        macs, runtime, precision = key["macs_target"], key["runtime"], key["precision"]
        self.on_phase(f"{key['model'].rpartition('/')[2]} {runtime} {precision} {macs:g}", 0, 1)
        whole = Plan.of(base.groups, {})
        try:
            plan = whole if macs == 1 else random_plans(base.groups, macs, 1, self.seed, key["multiple"])[0]
        except PlanError:  # a narrow network keeps more than that in such multiples
            return None
        full = self._full(key["model"], runtime, precision)
        found = full if macs == 1 else self._program(key["model"], plan, runtime, precision, "pruned")
        paired = LatencyRatio(1.0, 1.0, 1.0)
        if macs < 1:
            with torch.no_grad():
                paired = latency_ratio(found.call, full.call, seconds=self.seconds)
        kept = plan.counts()
        return {
            "threads": 1,
            "macs_ratio": base.groups.macs_ratio(kept),
            "parameters_ratio": base.groups.parameters_ratio(kept),
            "latency_ratio": paired.median,
            "latency_ratio_low": paired.low,
            "latency_ratio_high": paired.high,
            "energy_ratio_modelled": energy_ratio(base.groups, kept),
            **self._alone(found, runtime, key["model"]),
        }

    def _reported(self, base: BaseModel, macs: float, energy: float) -> dict[str, float]:
        """Model the energy of a network that is pruned evenly to the MACs that were reported."""
        kept = random_plans(base.groups, 1 - macs, 1, self.seed, 1)[0].counts()
        return {
            "macs_ratio": base.groups.macs_ratio(kept),
            "energy_ratio_modelled": energy_ratio(base.groups, kept),
            "macs_saved_reported": macs,
            "energy_saved_reported": energy,
        }

    @remembers_last_call
    def _base(self, model: str) -> BaseModel:
        classes, shape = OWN[model] if model in OWN else made_for(model)
        return random_base(model, shape, self.seed, classes=classes)

    @remembers_last_call
    def _engine(self, model: str) -> OnnxEngine:
        base = self._base(model)
        return OnnxEngine(Network(network_graph(base), base.state, base.mean, base.std), base.groups)

    @remembers_last_call
    def _full(self, model: str, runtime: str, precision: str) -> _Program:
        return self._program(model, Plan.of(self._base(model).groups, {}), runtime, precision, "full")

    def _program(self, model: str, plan: Plan, runtime: str, precision: str, name: str) -> _Program:
        base = self._base(model)
        if (runtime, precision) == TORCH:
            file, submodel = self.folder / f"{name}.safetensors", sliced(base, plan)
            Standalone.of(submodel).write(file)
            return _Program(partial(submodel.module, _image(base.groups.input_shape)), file)
        if (runtime, precision) == EXECUTORCH:
            file, shape = self.folder / f"{name}.pte", base.groups.input_shape
            file.write_bytes(executorch_program.lowered(sliced(base, plan).module, shape))
            return _Program(executorch_program.call(file, shape), file)
        engine, file = self._engine(model), self.folder / f"{name}.onnx"
        own = engine.load(plan, slice_state(base.state, base.groups, plan, own=True))
        content = own.network.program(own.classes)
        if precision == "int8":
            height, width = base.groups.input_shape[1:]
            size = (CALIBRATION, height, width, base.groups.input_shape[0])
            images = np.random.default_rng(self.seed).integers(0, 256, size, dtype=np.uint8)
            quantised = engine.quantised(own, images)
            if quantised is None:
                raise ModelError(f"{model} has no eight bits: leave it out")
            content = quantised.content
        file.write_bytes(content)
        session = load(content, 1, file.name)
        return _Program(partial(session.run, None, example(session, file.name)), file)

    def _alone(self, program: _Program, runtime: str, model: str) -> dict[str, float]:
        """Measure a network in a process of its own."""
        if runtime in ("torch", "executorch"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                if runtime == "torch":
                    return pool.submit(torch_alone, program.file, model, self.seconds).result()
                shape = self._base(model).groups.input_shape
                return pool.submit(executorch_program.executorch_alone, program.file, shape, self.seconds).result()
        found = measured_alone(program.file, Request(runs=20, seconds=self.seconds))
        return {name: found[name] for name in FIGURES}


@torch.no_grad()
def torch_alone(file: Path, model: str, seconds: float) -> dict[str, float]:
    """Run a submodel's file with torch in this process, which should have nothing else. For a process of its own."""

    def load() -> Call:
        submodel = Standalone.read(file, model)
        return partial(submodel.module, _image(submodel.input_shape))

    return alone(load, file, seconds)


def _image(shape: tuple[int, int, int]) -> torch.Tensor:
    return image(shape).contiguous(memory_format=torch.channels_last)
