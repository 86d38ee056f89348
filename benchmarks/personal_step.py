"""What the personal step costs a real phone: peak memory and CPU seconds of its child process, on ONNX Runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from PIL import Image
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.options import Model, Weights
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from benchmarks.subsets import shown
from fedcaptor._graph_export import export_graph
from fedcaptor.client import pending_delivery
from fedcaptor.client.background import LEAN
from fedcaptor.client.onnx_engine import OnnxEngine
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.data import mosaic
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.errors import StateError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan_bits import pack_plan
from fedcaptor.common.planner import Budget, allocate

FACTOR = 0.5
"""MACs of the clusters' plans, as a ratio of the full model's."""

MEASURED = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, "-m", "fedcaptor.client.background"], os.environ)
used = os.wait4(child, 0)[2]
print(json.dumps([used.ru_maxrss, used.ru_utime + used.ru_stime]))
"""


@dataclass(frozen=True, kw_only=True)
class PersonalStep(Benchmark):
    """Peak memory and CPU seconds of a phone's child process, from its start to the stored submodel.

    The phone has not looked at its images yet, and has a pending delivery: plans of two clusters, and reference images
    of the owner's classes alone, so that all of them are used. Run it for each network with the same --json.

    Example: python -m benchmarks personal_step --model vgg16 --weights vgg16.safetensors --data test.npz
    --json benchmarks/results/personal_step.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of the owner's and of the reference images.")]
    images: Annotated[int, Option(min=6, help="Own images, and as many reference images."), SHARED] = 150
    classes: Annotated[str, Option(help="The owner's classes, numbers."), SHARED] = "1,4,7"
    repetitions: Annotated[int, Option(min=1, help="Steps, of which the figures are the least."), SHARED] = 3

    def row_keys(self) -> list[Row]:
        return [{"model": self.model, "data": shown(self.data)}]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        with TemporaryDirectory(prefix="fedcaptor-step-") as place:
            found = []
            for number in range(self.repetitions):
                folder = Path(place) / str(number)
                self._phone(folder)
                found.append(_step(folder))
            outcome = Outcome.read(folder / "own")
            if outcome is None:
                raise StateError(f"the personal step has no outcome: {(folder / 'work.log').read_text()}")
        peaks, seconds = zip(*found, strict=True)
        return {"peak_rss_bytes": float(min(peaks)), "cpu_seconds": min(seconds), "kind": outcome.kind}

    def _phone(self, folder: Path) -> None:
        """Write a phone's folder: graph, images, settings, a pending delivery."""
        (folder / "images").mkdir(parents=True)
        graph, data, own = folder / "graph.onnx", load(self.data), [int(each) for each in self.classes.split(",")]
        export_graph(self.model, self.weights, self.data, graph)
        engine = OnnxEngine.of(graph, self.weights)
        order = np.random.default_rng(0).permutation(len(data.y))
        order = order[np.isin(data.y[order], own)][: 2 * self.images]
        for number in order[: self.images]:
            pixels = data.x[number]
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
                folder / f"images/{number:06d}.png"
            )
        request, tensors = _delivery(engine, data, own, order[self.images :])
        pending_delivery.store(folder / "own", request, tensors)
        (folder / "phone.toml").write_text(
            f'[device]\nsuperlink = "localhost:1"\nkey = "key"\nfolder = "own"\nimages = "images"\n'
            f'weights = "{self.weights.absolute()}"\ngraph = "graph.onnx"\nmodel = "{self.model}"\n'
            f"input_shape = {list(engine.groups.input_shape)}\n"
        )


def _delivery(
    engine: OnnxEngine, data: Dataset, own: list[int], reference: np.ndarray
) -> tuple[DeliverRequest, dict[str, np.ndarray]]:
    """Make a delivery for two clusters: one of the owner's classes, one of the others."""
    groups, others = engine.groups, np.setdiff1d(np.arange(engine.groups.classes), own)
    plans, centroids = [], np.zeros((2, groups.classes), np.float32)
    for cluster, classes in enumerate((np.array(own), others)):
        images = data.x[np.flatnonzero(np.isin(data.y, classes))[:60]]
        curves = engine.observe(classes, images, rows=1024).curves
        plans.append(allocate(groups, curves, classes, Budget(macs=FACTOR)))
        centroids[cluster, classes] = 1 / len(classes)
    tensors = {
        "centroids": centroids,
        "reference": mosaic.code(data.x[reference]),
        "reference_labels": data.y[reference].astype(np.int32),
        "preference": np.full((sum(group.channels for group in groups.prunable), groups.classes), 0.5, np.float32),
        "calibration": Calibration.none(groups.classes).packed(),
        **{f"plan.{cluster}": pack_plan(plan.kept, groups) for cluster, plan in enumerate(plans)},
    }
    request = DeliverRequest(
        run="a" * 64,
        round=1,
        request="b" * 32,
        mode="plan",
        weights=engine.weights_digest,
        clusters=(0, 1),
        digests=tuple(plan.digest for plan in plans),
    )
    return request, tensors


def _step(folder: Path) -> tuple[int, float]:
    """Run the child process of a phone's own work; return its peak of memory in bytes, and its CPU seconds.

    A small process starts it: on Linux a child's peak is at least what its parent's was when it was made.
    """
    settings = json.dumps({"node": {"file": str(folder / "phone.toml")}, "kind": ""})
    with (folder / "work.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED],
            input=settings.encode(),
            stdout=subprocess.PIPE,
            stderr=log,
            env=LEAN | os.environ,
            check=True,
        )
    peak, seconds = json.loads(done.stdout)
    return peak * (1 if sys.platform == "darwin" else 1024), seconds
