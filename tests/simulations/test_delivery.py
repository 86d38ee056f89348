"""Submodels delivered the whole way: who gets what, what the server keeps, what a damaged file does, what it costs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from sqlalchemy import create_engine, text

from fedcaptor.client.fallback import Models
from fedcaptor.client.kept_models import read_models
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.messages import DeliverReply, DeliverRequest
from fedcaptor.common.submodel_file import bucket
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server.collect import size_of
from fedcaptor.simulations import runner
from fedcaptor.simulations.oracle import Oracle
from tests import tiny

pytestmark = pytest.mark.slow

PHONES, VICTIM, ATTEMPTS = 24, 5, 2


@dataclass
class Wire:
    """Sees every delivery; flips a byte of each submodel that is on its way to the victim."""

    sent: list[tuple[int, DeliverRequest, int, int]] = field(default_factory=list)  # phone, header, bytes, of the file
    replies: list[tuple[int, DeliverReply, int]] = field(default_factory=list)  # phone, header, tensors

    def around(self, app: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            if message.metadata.message_type != "query.deliver":
                return app(message, context)
            number = int(context.node_config["partition-id"])
            request, tensors = unpack(message.content, DeliverRequest)
            file = next((name for name in tensors if name.startswith("submodel.")), "")
            size = tensors[file].size if file else 0
            self.sent.append((number, request, size_of(message.content), size))
            if file and number == VICTIM:
                flipped = tensors[file].copy()
                flipped[-1] ^= 1
                message.content = pack(request, {**tensors, file: flipped})
            reply = app(message, context)
            header, values = unpack(reply.content, DeliverReply)
            self.replies.append((number, header, len(values)))
            return reply

        return answer


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Config
    summary: dict[str, Any]
    wire: Wire
    base: BaseModel
    weights_bytes: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, wire = tmp_path_factory.mktemp("delivery"), Wire()
    data, weights = tiny.write(folder / "tiny")
    more = [
        'delivery.mode="submodel"',
        'fallback.mode="cluster"',
        f"population.phones={PHONES}",
        "population.out_of_set=0.3",
        "privacy.noise=false",
        "privacy.min_cohort=3",
        "testing.small_cohorts=true",
        "clusters.k=2",
        f"rounds.attempts={ATTEMPTS}",
    ]
    config = load_config(None, tiny.overrides(data, weights, *more))
    with pytest.MonkeyPatch.context() as patch:
        make_app = runner.make_app
        patch.setattr(runner, "make_app", lambda phone_of: wire.around(make_app(phone_of)))
        summary = runner.simulate(config, folder / "run")
    return Run(folder / "run", config, summary, wire, tiny.base_model(weights), weights.stat().st_size)


def folder_of(run: Run, number: int) -> Path:
    return run.folder / "phones" / f"{number:06d}"


def models_of(run: Run, number: int) -> Models:
    return read_models(folder_of(run, number), TorchEngine(run.base), "cluster")


def test_every_phone_gets_the_submodel_of_the_cluster_that_it_named(run: Run) -> None:
    assert run.summary["clusters"] == 2
    assert "log2 K" in run.summary["privacy"]["delivery_leak"]
    named = {n: reply.cluster for n, reply, _ in run.wire.replies if reply.cluster is not None}
    assert sorted(named) == list(range(PHONES))
    assert set(named.values()) == {0, 1}
    for number, request, _, _ in run.wire.sent:
        if request.mode == "submodel":
            assert request.clusters == (named[number],)
    for number in set(range(PHONES)) - {VICTIM}:
        models, note = models_of(run, number), Outcome.read(folder_of(run, number))
        assert note is not None
        assert note.cluster == named[number]
        assert models.own is not None
        assert models.own.macs_ratio <= 0.62
        assert models.larger is not None


def test_the_question_is_the_same_for_all_and_files_hide_in_buckets(run: Run) -> None:
    asked = [(request, size) for _, request, size, _ in run.wire.sent if request.mode == "choose"]
    assert len(asked) == PHONES
    assert all(question == asked[0] for question in asked)
    sizes = defaultdict(set)
    for _, request, size, file in run.wire.sent:
        if request.mode == "submodel":
            sizes[file].add(size)
    assert sizes
    assert all(bucket(file) == file for file in sizes)
    assert all(len(of_bucket) == 1 for of_bucket in sizes.values())


def test_a_damaged_submodel_is_refused_and_the_round_goes_on(run: Run) -> None:
    assert run.summary["faults"]["wrong_digest"] == ATTEMPTS
    assert Outcome.read(folder_of(run, VICTIM)) is None
    fleet = json.loads((run.folder / "snapshot.json").read_text())
    assert (fleet["status"], fleet["refused"]) == ("ended", {"wrong_digest": ATTEMPTS})


def test_the_server_keeps_clusters_and_learns_no_more(run: Run) -> None:
    for _, reply, tensors in run.wire.replies:
        assert tensors == 0
        assert set(reply.model_dump()) == {"version", "run", "round", "request", "message", "accepted", "cluster"}
    engine = create_engine(f"sqlite:///{run.folder / 'state.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT phase, outcome, length(tensors) AS size FROM phases")).all()
    engine.dispose()
    outcome, size = next((json.loads(row.outcome), row.size) for row in rows if row.phase == "deliver")
    assert set(outcome) == {"tally", "reference"}
    assert set(outcome["reference"]) == {"images", "coding"}  # the server's own
    tally, counters = outcome["tally"], ("refused", "messages", "traffic")
    assert all(isinstance(value, int) for name, value in tally.items() if name not in counters)
    assert all(isinstance(value, int) for name in counters for value in tally[name].values())
    assert outcome["tally"]["replies"] == 2 * PHONES - 1
    assert size < 64  # no tensors


def test_what_each_fallback_costs_on_one_phone(run: Run) -> None:
    """One folder is read under each mode: it holds the cluster's submodel in all of them."""
    note = Outcome.read(folder_of(run, 0))
    assert note is not None
    own, larger = note.macs, models_of(run, 0).larger
    assert larger is not None
    stored = sum(file.stat().st_size for file in folder_of(run, 0).iterdir())
    extra = {"kept_full": 1.0, "cluster": larger.macs_ratio, "abstain": 0.0}
    assert own < extra["cluster"] < 1
    for mode, macs in extra.items():
        config = run.config.model_copy(update={"fallback": run.config.fallback.model_copy(update={"mode": mode})})
        figures = Oracle(run.folder, config, run.base, []).phone(0, 1)
        assert 0 < figures.escalated < 1
        assert figures.macs_ratio == own
        assert figures.effective_macs_ratio == pytest.approx(own + figures.escalated * macs)
        assert (figures.holds_full, figures.stored_bytes) == (mode == "kept_full", stored)
        assert (figures.abstained_outside > 0) == (mode == "abstain")


def test_storage_and_download_add_up(run: Run) -> None:
    folders = sum(f.stat().st_size for n in range(PHONES) for f in folder_of(run, n).iterdir())
    full = 1  # the victim's: it has nothing smaller
    expected = (full + folders / run.weights_bytes) / PHONES
    assert run.summary["storage_ratio"] == pytest.approx(expected)
    fetched = sum(size for _, _, size, _ in run.wire.sent)
    assert run.summary["download_bytes_ratio"] == pytest.approx(fetched / PHONES / run.weights_bytes)
    assert run.summary["out_of_set"]["abstained_ratio"] == 0
    assert np.isfinite(run.summary["effective_macs_ratio"])
