"""Clusters from local answers: what is fitted, what is refused, what is left on disk and said before a run."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from typer.testing import CliRunner

from fedcaptor.cli.main import app as command_line
from fedcaptor.client.app import make_app
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import Clusters, Privacy, Rounds, load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.messages import LocalReply, LocalRequest
from fedcaptor.common.privacy.local import LocalSpec
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server import local
from fedcaptor.server.budget import SumBudget, steps
from fedcaptor.server.collect import Courier
from fedcaptor.server.journal import Journal
from fedcaptor.server.local_design import best_local_spec
from fedcaptor.server.local_plan import plan_local_answers
from fedcaptor.server.start import budget_of
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid, VirtualClock
from tests.server.test_budget import GROUPS

CLASSES = 40
SPEC = best_local_spec(CLASSES, 1.0)
RUN = "a" * 64


def answers_of(usage: np.ndarray, spec: LocalSpec, seed: int = 0) -> local.Answers:
    answers, rng = local.Answers(spec, len(usage)), np.random.default_rng(seed)
    for of_phone in usage:
        answers.add(spec.draw(of_phone, rng))
    return answers


def two_groups(phones: int, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Owners of the first three classes (two thirds of them) and of the others; both groups' usage."""
    centroids = np.zeros((2, classes))
    centroids[0, :3], centroids[1, 3:6] = (0.6, 0.3, 0.1), (0.2, 0.2, 0.6)
    return centroids[(np.arange(phones) % 3 == 2).astype(int)], centroids


@pytest.mark.parametrize("epsilon", [3.0, 8.0])
def test_two_groups_are_found_with_their_usage_and_size(epsilon: float) -> None:
    usage, truth = two_groups(3000)
    answers = answers_of(usage, best_local_spec(6, epsilon))
    found, counts = local.published(answers, Clusters(k=2), seed=0)
    order = np.argsort(-found[:, :3].sum(1))
    np.testing.assert_allclose(found[order], truth, atol=0.06)
    np.testing.assert_allclose(counts[order], [2000, 1000], atol=150)
    np.testing.assert_allclose(found.sum(1), 1)
    assert counts.sum() == pytest.approx(3000)


def test_a_step_of_the_fit_by_hand() -> None:
    """One phone, two classes, bits (1, 0, 0): pair (0, 0) is e^ε times as likely as each other one."""
    spec = LocalSpec(2, 0.75, 0.25)  # e^ε = 9
    answers = local.Answers(spec, 1)
    answers.add(np.packbits([1, 0, 0]))
    found, counts = local.fit(answers, np.array([[0.5, 0.5]]), 1)
    odds = np.array([0.25 * 9, 0.5, 0.25])
    expected = (odds / odds.sum()) @ np.array([[1, 0], [0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(found, [expected])
    np.testing.assert_allclose(counts, [1])


def test_each_step_makes_the_answers_likelier() -> None:
    answers = answers_of(two_groups(200)[0], best_local_spec(6, 4.0))
    rng = np.random.default_rng(0)
    centroids = rng.dirichlet(np.ones(6), 3)
    rows, columns = np.triu_indices(6)
    gain, bits = np.exp(answers.spec.epsilon) - 1, np.concatenate(list(answers.parts()))

    def likelihood(centroids: np.ndarray, counts: np.ndarray) -> float:
        pairs = np.where(rows == columns, 1, 2) * centroids[:, rows] * centroids[:, columns]
        return float(np.log((1 + gain * bits @ pairs.T) @ (counts / counts.sum())).sum())

    found = [likelihood(*local.fit(answers, centroids, steps)) for steps in range(6)]
    assert (np.diff(found) > 0).all()


def test_answers_in_parts_fit_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, first = answers_of(two_groups(100)[0], best_local_spec(6, 4.0)), two_groups(1)[1] / 2 + 1 / 12
    whole = local.fit(answers, first, 3)
    monkeypatch.setattr(local, "_CHUNK", 7 * answers.spec.length)
    assert len(list(answers.parts())) == 15
    for one, other in zip(whole, local.fit(answers, first, 3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_noise_alone_makes_one_cluster() -> None:
    spec = best_local_spec(10, 1.0)
    found, counts = local.published(answers_of(np.zeros((60, 10)), spec), Clusters(), seed=0)
    assert len(found) == 1
    assert counts.tolist() == [pytest.approx(60)]


def test_nobody_is_an_error() -> None:
    with pytest.raises(PrivacyError, match="no phone answered"):
        local.published(local.Answers(SPEC, 3), Clusters(), seed=0)


def test_the_budget_is_one_answer_and_bounded_memory() -> None:
    config = load_config(None, ["privacy.sums=local", "privacy.epsilon=4", "rounds.cohort=30"])
    budget = budget_of(config, GROUPS, 50)
    assert isinstance(budget, local.LocalBudget)
    assert (budget.cohort, budget.epsilon([]), steps(config)) == (30, 0.0, [])
    assert budget.epsilon([budget.spec]) == budget.epsilon_server([budget.spec]) == pytest.approx(4)
    assert isinstance(budget_of(load_config(), GROUPS, 50), SumBudget)
    with pytest.raises(PrivacyError, match=r"100000 answers over 1000 classes take 6256300000 bytes.*lower rounds"):
        local.LocalBudget.of(Privacy(sums="local"), 1000, 100_000, 0)
    with pytest.raises(ConfigError, match="noise is false, with local sums"):
        load_config(None, ["privacy.sums=local", "privacy.noise=false"])


class MeetsTwo:
    shipped = SimpleNamespace(groups=SimpleNamespace(classes=CLASSES))

    def __init__(self, number: int) -> None:
        self.number = number

    def usage(self, round: int) -> np.ndarray:
        return np.bincount([self.number, 39], minlength=CLASSES) / 2

    def finish(self) -> None:
        pass


class Fleet:
    """Phones in folders behind a grid; `spoil` gives another answer in the place of a phone's."""

    def __init__(self, folder: Path, phones: int) -> None:
        self.folder, self.config = folder, load_config(None, ["privacy.sums=local", "privacy.epsilon=1"])
        self.spoil: dict[int, np.ndarray] = {}
        self.silent: set[int] = set()
        self._app, clock = make_app(self.phone_of), VirtualClock()
        grid = LocalGrid(self._answer, phones, clock=clock.time, sleep=clock.sleep)
        rounds = Rounds(deadline=10, poll=1, attempts=2)
        self.courier = Courier(grid, RUN, rounds, None, sleep=clock.sleep, clock=clock.time)
        self.nodes = [FIRST_NODE + n for n in range(phones)]

    def phone_of(self, context: Context) -> Phone:
        number = int(context.node_config["partition-id"])
        learner: Any = MeetsTwo(number)
        return Phone(self.folder / str(number), lambda: learner, self.config, durable=False)

    def _answer(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if number in self.silent:
            raise ConnectionError
        if number in self.spoil:
            request, _ = unpack(message.content, LocalRequest)
            return Message(pack(LocalReply.to(request), {"answer": self.spoil[number]}), reply_to=message)
        return self._app(message, context)


def test_malformed_answers_are_refused_and_silent_phones_left_out(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 6)
    long = np.zeros(104, np.uint8)
    fleet.spoil, fleet.silent = {1: long, 2: np.full(103, 255, np.uint8)}, {4}
    answers = local.Answers(SPEC, 6)
    tally = fleet.courier.answers(1, SPEC, fleet.nodes, answers.add)
    assert answers.phones == tally.replies == 3
    assert tally.refused == {"wrong_shape": 4}  # each asked twice
    assert tally.dropped > 0


def test_no_answer_is_left_in_journal_or_logs(tmp_path: Path) -> None:
    """Of an answer's 820 bits a quarter are noise: unmistakable. The same search finds it in the phone's file."""
    logs = io.StringIO()
    handler, root = logging.StreamHandler(logs), logging.getLogger()
    fleet, level = Fleet(tmp_path / "phones", 12), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        logging.getLogger("server").info("logs are taken")
        journal = Journal(f"sqlite:///{tmp_path / 'state.db'}", RUN)

        def compute():
            answers = local.Answers(SPEC, 12)
            tally = fleet.courier.answers(1, SPEC, fleet.nodes, answers.add)
            centroids, counts = local.published(answers, Clusters(), 0)
            return {"tally": tally.as_dict()}, {"centroids": centroids, "counts": counts}

        journal.phase(1, "usage-0", compute)
        journal.close()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    written = (tmp_path / "state.db").read_bytes(), logs.getvalue().encode()
    assert b"logs are taken" in written[1]
    request = LocalRequest(run=RUN, round=1, request="b" * 32, **vars(SPEC))
    for number in range(12):
        node = SimpleNamespace(node_config={"partition-id": number})
        answer = fleet.phone_of(node).local(request)  # type: ignore[arg-type]
        pieces = [answer.tobytes()[i : i + 16] for i in range(0, 96, 16)]
        assert all(sum(map(int.bit_count, piece)) > 10 for piece in pieces)
        assert all(piece in (tmp_path / "phones" / str(number) / "phone.db").read_bytes() for piece in pieces)
        texts = [piece.hex().encode() for piece in pieces] + [str(answer.tolist())[:40].encode()]
        assert not any(needle in content for needle in pieces + texts for content in written)


def planned(*overrides: str):
    return plan_local_answers(load_config(None, ["privacy.sums=local", *overrides]), GROUPS)


def test_the_plan_says_what_an_answer_is_and_what_masks_would_give() -> None:
    found = planned("population.phones=1000", "clusters.k=5")
    spec = best_local_spec(10, 8.0)
    assert (found.length, found.present, found.absent, found.epsilon) == (55, spec.present, spec.absent, spec.epsilon)
    assert found.deviation == pytest.approx(spec.share_deviation(200))
    assert found.year == pytest.approx(40)
    assert found.masked is not None
    assert found.masked.deviation < found.deviation
    assert (found.masked.delta, found.marks) == (1e-5, ("local answers",))
    enough = planned(f"population.phones={found.phones_for}", "clusters.k=5")
    assert found.target * 0.99 < enough.deviation <= found.target
    alone = planned("population.phones=10")
    assert alone.masked is None
    assert "the cohort has 10 phones" in alone.masked_error


def test_the_planned_deviation_is_that_of_the_fit() -> None:
    """Two groups that share no class, so that a phone's cluster is nearly known; 40 repetitions, within a third."""
    spec = best_local_spec(6, 6.0)
    usage, truth = np.zeros((300, 6)), np.zeros((2, 6))
    truth[0, :3] = truth[1, 3:] = 1 / 3
    usage[:] = truth[np.arange(300) % 2]
    errors = [local.fit(answers_of(usage, spec, seed), truth, 1)[0] - truth for seed in range(40)]
    inside = np.array(errors)[:, [0, 0, 0, 1, 1, 1], range(6)]
    assert inside.std() == pytest.approx(spec.share_deviation(150), rel=1 / 3)


@pytest.mark.slow
def test_the_plan_command_shows_both_kinds() -> None:
    words = ["privacy", "plan", "simulations/scenarios/demo.toml", "--set", "privacy.sums=local"]
    made = CliRunner().invoke(command_line, [*words, "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["masked"]["phones"] > 100
    shown = CliRunner().invoke(command_line, words)
    assert "local answers" in shown.stdout
    assert "0.8823" in shown.stdout
    few = CliRunner().invoke(command_line, [*words, "--set", "population.phones=5"])
    assert few.exit_code == 0, few.output
