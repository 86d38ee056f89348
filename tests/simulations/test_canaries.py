"""One phone's usage is planted in a run; nothing that the server writes, logs or shows holds it in any form."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest

from fedcaptor.client.identity import identity
from fedcaptor.client.phone import Phone
from fedcaptor.client.usage import UsageLog
from fedcaptor.common.config import load_config
from fedcaptor.common.messages import SumRequest
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.server.exporter import RunsCollector
from fedcaptor.simulations import local_grid
from fedcaptor.simulations.runner import World, build_world, simulate
from tests import tiny
from tests.simulations import canary

pytestmark = pytest.mark.slow

PHONES, VICTIM, RARE, OFTEN = 24, 5, 5, 2
NODES = 7_340_127_611  # ids from here: ten digits that no other number has
SIMULATORS = {"oracle", "phones", "population", "details.json", "phones.csv"}
"""What a run's folder holds that no server has: the simulator's truth, the phones' own folders and images."""
SERVERS = {"atlas.safetensors", "config.json", "report.html", "rounds.csv", "snapshot.json", "state.db", "summary.json"}


@dataclass
class Sent:
    """What the victim added up, taken inside the phone."""

    needles: canary.Needles = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def take(self, kind: str, spec: SumSpec, vector: NDArray[np.float64], encoded: NDArray[np.uint32]) -> None:
        self.kinds.add(kind)
        if kind == "outcome":  # ratios that phones have in common
            return
        self.needles |= canary.of_vector(f"{spec.name} vector", vector)
        self.needles |= canary.of_integers(f"{spec.name} quanta", np.trunc(vector * spec.scale).astype(np.int64))
        self.needles |= canary.of_integers(f"{spec.name} reply", encoded)


@dataclass(frozen=True)
class Run:
    folder: Path
    needles: canary.Needles
    usage: NDArray[np.float64]
    logs: bytes

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Everything of the server's side by name: files, their names, logs, and what the exporter shows."""
        names = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if name.parts[0] in SIMULATORS:
                continue
            names.append(str(name))
            if path.is_file():
                yield str(name), path.read_bytes()
        yield "file names", "\n".join(names).encode()
        yield "logs", self.logs
        registry = CollectorRegistry()
        registry.register(RunsCollector(self.folder))
        yield "metrics", generate_latest(registry)


def plant(world: World) -> None:
    """The victim meets `RARE`, which no other phone does, 17 times in 24, and `OFTEN`."""
    folder = world.directory / "population"
    images, use = np.load(folder / "images.npy"), np.load(folder / "use.npy")
    predicted = logits(world.base.module, normalise(images, world.base.mean, world.base.std)).argmax(1)
    rng = np.random.default_rng(0)
    common = np.flatnonzero(predicted != RARE)
    use = np.where(predicted[use] == RARE, rng.choice(common, use.shape), use)
    rare, often = (np.flatnonzero(predicted == c) for c in (RARE, OFTEN))
    use[0, VICTIM] = np.concatenate([rng.choice(rare, 17), rng.choice(often, use.shape[2] - 17)])
    np.save(folder / "use.npy", use.astype(np.int32))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, sent, logs = tmp_path_factory.mktemp("canary"), Sent(), io.StringIO()
    data, weights = tiny.write(folder / "tiny")
    config = load_config(None, tiny.overrides(data, weights, f"population.phones={PHONES}", "clusters.iterations=2"))
    assert config.privacy.sums == "masked"
    plain = Phone._encoded

    def encoded(phone: Phone, request: SumRequest, tensors: Any) -> NDArray[np.uint32]:
        values = plain(phone, request, tensors)
        if phone.folder.name == f"{VICTIM:06d}":
            sent.take(request.kind, request.sum.spec(), phone.learner().vector(request, tensors), values)
        return values

    handler = logging.StreamHandler(logs)
    loggers = [logging.getLogger(name) for name in (None, "flwr")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Phone, "_encoded", encoded)
        patch.setattr(local_grid, "FIRST_NODE", NODES)
        for logger in loggers:
            patch.setattr(logger, "level", logging.DEBUG)
            patch.setattr(logger, "handlers", [*logger.handlers, handler])
        plant(build_world(config, folder / "run"))
        logging.getLogger("server").info("logs are taken")
        simulate(config, folder / "run")
    own = folder / "run" / "phones" / f"{VICTIM:06d}"
    with UsageLog(own / "phone.db", tiny.CLASSES, config.usage.half_life) as log:
        usage, weights_of_classes = log.distribution(), log.counts()
    assert sent.kinds == {"usage", "scores", "outcome"}
    needles = {
        **sent.needles,
        **canary.of_vector("usage", usage, digits=6),
        **canary.of_vector("weights", weights_of_classes, digits=6),
        **canary.of_node(NODES + VICTIM, identity(own).public_key().public_bytes_raw()),
    }
    return Run(folder / "run", needles, usage, logs.getvalue().encode())


def test_the_canary_is_unmistakable(run: Run) -> None:
    """Its main class is nobody else's, and its forms are many: a search for nothing would find nothing."""
    assert run.usage.argmax() == RARE
    assert 0.4 < run.usage[RARE] < 0.95
    forms = {(name.partition("[")[0], name.rpartition(" ")[2]) for name in run.needles}
    assert forms >= {("usage", form) for form in ("float64", "float32", "text", "rounded")}
    assert forms >= {("1-usage-1 quanta", form) for form in ("uint32", "int64", "list")}
    assert forms >= {(f"1-{kind} reply", "uint32") for kind in ("usage-0", "usage-1", "scores-0")}
    assert min(map(len, run.needles.values())) >= 8


def test_nothing_of_the_server_holds_it(run: Run) -> None:
    assert {path.name for path in run.folder.iterdir()} == SIMULATORS | SERVERS
    leaks = {name: hits for name, content in run.written() if (hits := canary.found(run.needles, content))}
    assert leaks == {}


def test_logs_and_metrics_were_searched(run: Run) -> None:
    written = dict(run.written())
    assert b"logs are taken" in written["logs"]
    assert b'fedcaptor_snapshot_readable{run="run"} 1.0' in written["metrics"]


def test_the_search_finds_it_where_it_is(run: Run) -> None:
    """In the phone's own file, which is no server's."""
    hits = canary.found(run.needles, (run.folder / "phones" / f"{VICTIM:06d}" / "phone.db").read_bytes())
    assert any(hit.startswith("weights") for hit in hits)


@pytest.mark.parametrize("name", ["state.db", "snapshot.json", "rounds.csv", "report.html", "logs", "metrics"])
def test_the_search_finds_every_form_in_a_copy_of_what_the_server_wrote(run: Run, name: str) -> None:
    content = dict(run.written())[name][:100_000]
    planted = b"\0".join(run.needles.values())
    half = len(content) // 2
    assert canary.found(run.needles, content[:half] + planted + content[half:]) == sorted(run.needles)


def test_the_search_looks_into_base64(run: Run) -> None:
    """As the report's plots hold arrays."""
    array = b'{"bdata":"' + base64.b64encode(run.usage.astype("<f8").tobytes()) + b'"}'
    assert any("float64" in hit for hit in canary.found(run.needles, array))
