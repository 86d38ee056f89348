"""A new base model is rolled out while phones on the old one are served: two runs side by side over one grid."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from flwr.app import Context, Message

from fedcaptor.client.app import make_app
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import StateError
from fedcaptor.server.record import RunRecord
from fedcaptor.server.start import open_run, run_digest
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.runner import build_world
from tests import tiny

pytestmark = pytest.mark.long

PHONES = 16
OLD, NEW = set(range(PHONES // 2)), set(range(PHONES // 2, PHONES))
SETTINGS = [
    f"population.phones={PHONES}",
    "run.rounds=4",
    "privacy.noise=false",
    "privacy.min_cohort=6",
    "testing.small_cohorts=true",
    "clusters.k=2",
]


class Rollout:
    """Phones that have one of two base models: those of `on_new` the new one. Those in `off` get no deliveries.

    `asked`: which phones were asked for sums, by run and round.
    """

    def __init__(self, folder: Path) -> None:
        data, weights = tiny.write(folder / "old")
        later = tiny.write(folder / "new", steps=60)[1]
        self.folder, self.on_new, self.off = folder, set(NEW), set[int]()
        self.world = build_world(load_config(None, tiny.overrides(data, weights, *SETTINGS)), folder / "world")
        self.bases = {"old": self.world.base, "new": tiny.base_model(later)}
        self.asked: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
        self.app = make_app(self.phone)

    def phone(self, context: Context) -> Phone:
        number = int(context.node_config["partition-id"])
        base = self.bases["new" if number in self.on_new else "old"]
        return simulated_phone(self.world.directory, self.world.config, base, number)

    def start(self, name: str) -> RunRecord:
        """Run the next round of the run on the `old` or the `new` base model, over all phones."""

        def answer(message: Message, context: Context) -> Message:
            number = int(context.node_config["partition-id"])
            if message.metadata.message_type == "query.masked":
                self.asked[name, int(message.metadata.group_id.split("/")[0])].add(number)
            elif number in self.off:
                raise ConnectionError
            return self.app(message, context)

        grid, config, base = LocalGrid(answer, PHONES), self.world.config, self.bases[name]
        with open_run(
            config,
            base,
            self.world.reference,
            grid,
            digest=run_digest(config, base, "rollout"),
            state=f"sqlite:///{self.folder / name}.db",
            pictures=self.folder,
            wait_for_nodes=grid.get_node_ids,
        ) as flow:
            return flow.run(1)

    def served(self, number: int) -> bool:
        return Outcome.read(self.world.directory / "phones" / f"{number:06d}") is not None


def test_phones_with_other_weights_say_so_and_are_asked_for_no_sums_until_they_have_the_runs(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path)
    for name, others in (("old", NEW), ("new", OLD)):
        first = rollout.start(name)
        assert rollout.asked[name, 1] == OLD | NEW  # nobody knows yet
        assert first.refused == {"wrong_weights": len(others)}
        assert first.last.delivered.other_weights == {FIRST_NODE + number for number in others}
        assert all(rollout.served(number) == (number not in others or name == "new") for number in OLD | NEW)

    rollout.off.add(PHONES - 1)  # that it has not the old weights stays known
    for name, own in (("old", OLD), ("new", NEW)):
        assert rollout.start(name).refused == {"wrong_weights": 2 * PHONES // 2 - (name == "old")}
        assert rollout.asked[name, 2] == own
    rollout.off.clear()

    rollout.on_new.add(0)  # it gets the new base model, and the new run's next delivery
    for name, own in (("old", OLD), ("new", NEW)):
        rollout.start(name)
        assert rollout.asked[name, 3] == own
    for name, own in (("old", OLD - {0}), ("new", NEW | {0})):
        rollout.start(name)
        assert rollout.asked[name, 4] == own


def test_a_round_that_other_weights_leave_too_few_phones_for_is_refused(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path)
    rollout.on_new |= {0, 1, 2}
    rollout.start("old")
    with pytest.raises(StateError, match=r"16 phones are connected, 11 of them with other weights; .*min_cohort is 6"):
        rollout.start("old")
    assert rollout.asked["old", 2] == set()
