"""Masked sums over messages: the very sums of plain ones, whoever is lost; what phones decline, what is charged."""

from __future__ import annotations

import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from fedcaptor.client import masked_sums
from fedcaptor.client.app import make_app
from fedcaptor.client.folder import IDENTITY_FILE
from fedcaptor.client.identity import identity
from fedcaptor.client.ledger import Ledger
from fedcaptor.client.masked_sums import MAX_OPEN, MaskedLedger
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import Config, Rounds, load_config
from fedcaptor.common.errors import PrivacyError, StateError, WireError
from fedcaptor.common.messages import MaskedReply, MaskedRequest, SumFields, SumRequest
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.secure import keys, messages
from fedcaptor.common.secure.messages import MASKING, STEPS
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server.collect import Courier
from fedcaptor.server.journal import Journal
from fedcaptor.server.masked import Lost, Masking
from fedcaptor.server.sum_log import SumLog
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid, VirtualClock

RUN = "a" * 64
PHONES, LENGTH = 12, 5
SPEC = SumSpec("1-usage-0", LENGTH, 2.0, 1024.0, 0.0, cohort=PHONES, min_survivors=10, min_cohort=8, small_cohorts=True)
NOISY = replace(SPEC, noise_multiplier=3.0)
ROTATED = replace(NOISY, rotated=True)
SETTINGS = ["privacy.min_cohort=8", "privacy.noise=false", "testing.small_cohorts=true"]
Fails = Callable[[MaskedRequest, int], bool]
never: Fails = lambda request, number: False  # noqa: E731


@dataclass
class FixedLearner:
    """Its vector is its phone's number, so a sum tells who is in it."""

    number: int

    def vector(self, request: SumRequest, tensors: Any) -> np.ndarray:
        return np.arange(LENGTH) / 8 + self.number / 64


class World:
    """Phones in folders and a courier. `lost(request, number)`: a phone answers by an error; `cut`: it does its work
    and the answer is lost, once; `silent(step, number)`: it never answers. `asked`: requests by phone and step; `seen`:
    those answered, with the replies; `listed`: how often the server listed all phones.
    """

    def __init__(self, folder: Path, *settings: str, seeded: bool = True, attempts: int = 2) -> None:
        self.folder, self.config, self.seeded = folder, load_config(None, [*SETTINGS, *settings]), seeded
        self.lost: Fails = never
        self.cut: Fails = never
        self.enrolled: Callable[[bytes], bool] | None = None
        self.unaware: set[int] = set()  # phones without the register
        self.silent: Callable[[int, int], bool] = lambda step, number: False
        self.answered: Counter[tuple[int, int]] = Counter()
        self.asked: dict[tuple[int, int], tuple[MaskedRequest, dict[str, Any]]] = {}
        self.seen: dict[tuple[int, int], tuple[MaskedRequest, dict[str, Any], bytes]] = {}
        self.clock, self.tries = VirtualClock(), 0
        self._app = make_app(self.phone_of)
        self.grid = LocalGrid(self._answer, PHONES, clock=self.clock.time, sleep=self.clock.sleep)
        self.grid._fault = self._fault  # type: ignore[method-assign]
        self.listed, listing = 0, self.grid.get_node_ids

        def counted() -> Any:
            self.listed += 1
            return listing()

        self.grid.get_node_ids = counted  # type: ignore[method-assign]
        self._rounds = Rounds(deadline=10, poll=1, attempts=attempts)

    def _fault(self, node: int, metadata: Any, digest: bytes) -> tuple[str, np.random.Generator]:
        step = metadata.group_id.split("/")[3:-1]  # a masked sum's
        silent = bool(step) and self.silent(int(step[0]), node - FIRST_NODE)
        return "silence" if silent else "ok", np.random.default_rng(0)

    def phone_of(self, context: Context) -> Phone:
        return self.phone(int(context.node_config["partition-id"]))

    def phone(self, number: int, config: Config | None = None) -> Phone:
        """From what is in its folder: every message finds a phone that has just been started."""
        seed = (7, number) if self.seeded else None
        learner: Any = FixedLearner(number)
        enrolled = None if number in self.unaware else self.enrolled
        folder = self.folder / str(number)
        return Phone(folder, lambda: learner, config or self.config, seed, durable=False, enrolled=enrolled)

    def _answer(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.metadata.message_type != "query.masked":
            return self._app(message, context)
        request, tensors = unpack(message.content, MaskedRequest)
        self.asked[number, request.step] = request, tensors
        if self.lost(request, number):
            raise ConnectionError
        reply = self._app(message, context)
        self.answered[number, request.step] += 1
        self.seen[number, request.step] = request, tensors, unpack(reply.content, MaskedReply)[1]["secure"].tobytes()
        if self.cut(request, number) and self.answered[number, request.step] == 1:
            raise ConnectionError
        return reply

    def sum(
        self,
        spec: SumSpec = SPEC,
        numbers: Any = range(PHONES),
        plain: bool = False,
        log: SumLog | None = None,
        grace: float = math.inf,
    ) -> tuple[np.ndarray, Any]:
        masking = None if plain else Masking(0.2, 0.05, self._attempt, self.enrolled)
        courier = Courier(
            self.grid, RUN, self._rounds, masking, grace=grace, sleep=self.clock.sleep, clock=self.clock.time
        )
        tensors = {"centroids": np.eye(2, dtype=np.float32)}
        return courier.sum(1, "usage", spec, tensors, [FIRST_NODE + number for number in numbers], log)

    def _attempt(self, number: int) -> str:
        self.tries += 1
        return f"{self.tries:032x}"

    def ledger(self, number: int) -> Path:
        """Where a phone is charged: devices have a file of its own for sums without noise."""
        return self.folder / str(number) / ("phone.db" if self.seeded else "noise-free.db")

    def charges(self) -> list[int]:
        """How often each phone was charged."""
        found = []
        for number in range(PHONES):
            path = self.ledger(number)
            if not path.exists():
                found.append(0)
                continue
            with Ledger(path, delta=1e-5, budget_epsilon=8.0) as ledger:
                found.append(len(ledger.entries()))
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "masked")


def plain(tmp_path: Path, spec: SumSpec, numbers: Any = range(PHONES)) -> np.ndarray:
    """The plain sum of the same phones' answers to the same question; cohort and survivors as they are in `spec`."""
    return World(tmp_path / "plain", "privacy.sums=plain").sum(spec, numbers, plain=True)[0]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, NOISY, ROTATED], ids=["noise off", "seeded noise", "rotated, seeded noise"])
def test_masked_and_plain_sums_are_equal_to_the_bit(spec: SumSpec, world: World, tmp_path: Path) -> None:
    total, tally = world.sum(spec)
    np.testing.assert_array_equal(total, plain(tmp_path, spec))
    assert (tally.asked, tally.replies, tally.dropped, dict(tally.refused)) == (PHONES, PHONES, 0, {})
    assert set(world.answered.values()) == {1}
    assert len(world.answered) == PHONES * STEPS
    assert world.listed == 1


def test_no_two_messages_of_a_phone_show_its_vector(world: World) -> None:
    """The masked vector is not the vector, and differs between phones whose vectors are alike."""
    world.sum()
    sent = [world.seen[number, MASKING][2] for number in range(PHONES)]
    clear = np.trunc((np.arange(LENGTH) / 8) * SPEC.scale).astype("<u4").tobytes()
    assert clear not in sent[0]
    assert len(set(sent)) == PHONES


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
def test_phones_that_are_lost_in_any_step_leave_the_sum_of_the_others(step: int, world: World, tmp_path: Path) -> None:
    gone = (3, 7)
    world.lost = lambda request, number: number in gone and request.step >= step
    total, tally = world.sum(NOISY)
    left = [n for n in range(PHONES) if n not in gone or step > MASKING]
    np.testing.assert_array_equal(total, plain(tmp_path, NOISY, left))
    assert tally.replies == len(left)
    assert tally.dropped >= 2
    assert world.charges() == [int(n in left) for n in range(PHONES)]


def test_a_phone_that_is_not_enrolled_is_left_out_and_stops_no_sum(world: World, tmp_path: Path) -> None:
    known = set()
    for number in range(1, PHONES):
        (world.folder / str(number)).mkdir(parents=True)
        known.add(keys.identity_of(identity(world.folder / str(number))))
    world.enrolled, world.unaware = known.__contains__, {0}
    total, tally = world.sum(NOISY)
    np.testing.assert_array_equal(total, plain(tmp_path, NOISY, range(1, PHONES)))
    assert set(tally.refused) == {"unknown_node"}


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
def test_a_phone_that_dies_after_its_work_goes_on_with_the_same_bytes(step: int, world: World, tmp_path: Path) -> None:
    first: dict[int, bytes] = {}

    def cut(request: MaskedRequest, number: int) -> bool:
        if request.step == step:
            assert first.setdefault(number, world.seen[number, step][2]) == world.seen[number, step][2]
        return request.step == step

    world.cut = cut
    total, tally = world.sum(NOISY)
    np.testing.assert_array_equal(total, plain(tmp_path, NOISY))
    assert tally.dropped == PHONES
    assert {world.answered[n, step] for n in range(PHONES)} == {2}
    assert world.charges() == [1] * PHONES


def journal_of(tmp_path: Path) -> Journal:
    """As a server opens it that has just been started."""
    return Journal(f"sqlite:///{tmp_path / 'state.db'}", RUN)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
def test_a_server_that_is_stopped_goes_on_with_the_same_sum(step: int, tmp_path: Path) -> None:
    """It is stopped in the middle of a step, and again; devices draw from the system's randomness."""
    world = World(tmp_path, seeded=False)
    for stops in range(2):

        def stop(request: MaskedRequest, number: int, stops: int = stops) -> bool:
            if (request.step, number) == (step, 4 + 3 * stops):
                raise KeyboardInterrupt
            return False

        world.lost = stop
        with pytest.raises(KeyboardInterrupt):
            world.sum(log=journal_of(tmp_path).sum_log(1, "usage-0", 0))
    world.lost = never
    total, tally = world.sum(log=journal_of(tmp_path).sum_log(1, "usage-0", 0))
    np.testing.assert_allclose(total, (np.arange(PHONES)[:, None] / 64 + np.arange(LENGTH) / 8).sum(0))
    assert world.charges() == [1] * PHONES
    assert world.tries == 1
    asked = {at: [world.answered[number, at] for number in (0, PHONES - 1)] for at in range(STEPS)}
    assert asked == {at: [3, 1] if at == step else [1, 1] for at in range(STEPS)}
    assert (tally.asked, tally.replies, tally.dropped) == (PHONES, PHONES, 0)


def test_no_masked_vector_is_in_the_journal(tmp_path: Path) -> None:
    world = World(tmp_path, seeded=False)
    world.lost = lambda request, number: request.step == STEPS - 1
    with pytest.raises(Lost):
        world.sum(log=journal_of(tmp_path).sum_log(1, "usage-0", 0))
    stored = (tmp_path / "state.db").read_bytes()
    for number in range(PHONES):
        reply = world.seen[number, MASKING][2]
        message = messages.Masked.from_bytes(reply, reply[2:18])
        assert message.tokens.tobytes() in stored
        assert message.vector.tobytes() not in stored


@pytest.mark.slow
def test_a_phone_that_does_not_open_is_named_and_the_others_add_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Phone.masked

    def masked(phone: Phone, request: MaskedRequest, tensors: Any) -> np.ndarray:
        reply = answer(phone, request, tensors)
        if phone.folder.name == "3" and request.step == 2:
            message = messages.Shares.from_bytes(reply.tobytes(), reply[2:18].tobytes())
            changed = messages.Shares(message.commitment ^ 1, message.sealed).to_bytes(reply[2:18].tobytes())
            return np.frombuffer(changed, np.uint8)
        return reply

    monkeypatch.setattr(Phone, "masked", masked)
    with pytest.raises(Lost, match="1-usage-0: secure sum: the secrets of 1 phones do not open") as lost:
        world.sum()
    assert (lost.value.reason, lost.value.blamed) == ("unopened", (FIRST_NODE + 3,))
    others = [number for number in range(PHONES) if number != 3]
    np.testing.assert_array_equal(world.sum(numbers=others)[0], plain(tmp_path, SPEC, others))


def test_phones_that_are_off_cost_the_grace_period_once_a_step(world: World, tmp_path: Path) -> None:
    """One of twelve is off from the start, another one leaves before its vector; 10 are enough."""
    off = {0: 0, 1: MASKING}
    world.silent = lambda step, number: step >= off.get(number, STEPS)
    total, tally = world.sum(grace=3)
    np.testing.assert_array_equal(total, plain(tmp_path, SPEC, range(2, PHONES)))
    assert world.clock.now == 2 * 3  # neither is asked in a later step
    assert (tally.replies, tally.dropped) == (10, 2)


def test_too_few_replies_are_waited_for_until_the_deadline(world: World) -> None:
    world.silent = lambda step, number: number < 3
    with pytest.raises(Lost, match="9 phones on the list of keys"):
        world.sum(grace=3)
    assert world.clock.now == 2 * 2 * 10  # tries of the sum, times each is asked


@pytest.mark.slow
def test_devices_begin_few_sums_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try draws another graph of masks. Those that are over do not count, and none can be begun twice."""
    monkeypatch.setattr(masked_sums, "MAX_STARTS", 3)
    world = World(tmp_path, seeded=False)
    world.sum()
    request, tensors, _ = world.seen[5, 0]

    def begin(attempt: int, phone: Phone | None = None) -> None:
        other = request.model_copy(update={"attempt": f"{attempt:032x}"})
        start = messages.Start().to_bytes(other.terms().binding)
        (phone or world.phone(5)).masked(other, {**tensors, "secure": np.frombuffer(start, np.uint8)})

    for attempt in (10, 11, 11, 12):
        begin(attempt)
    with pytest.raises(PrivacyError, match="3 sums in the period were begun and not finished, the bound is 3; wait"):
        begin(13)
    with closing(sqlite3.connect(world.ledger(5))) as connection, connection:
        connection.execute("DELETE FROM masked_sums")
    with pytest.raises(PrivacyError, match="the sum was begun before and is gone"):
        begin(12)
    world.sum(numbers=[number for number in range(PHONES) if number != 5])


def test_sums_that_a_device_declines_for_their_price_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_sums, "MAX_STARTS", 2)
    world = World(tmp_path, "privacy.noise=true", "privacy.epsilon=0.05", seeded=False, attempts=1)
    for match in ("would raise epsilon", "would raise epsilon", "2 sums in the period were begun"):
        with pytest.raises(PrivacyError, match="0 phones on the list of keys"):
            world.sum(NOISY)
        with pytest.raises(PrivacyError, match=match):
            world.phone(5).masked(*world.asked[5, 0])


def test_devices_with_the_systems_randomness_add_up_too(tmp_path: Path) -> None:
    world = World(tmp_path, seeded=False)
    total, _ = world.sum()
    numbers = np.arange(PHONES)[:, None] / 64 + np.arange(LENGTH) / 8
    np.testing.assert_allclose(total, numbers.sum(0))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(MASKING))
def test_too_few_phones_before_any_vector_was_sent_is_free_and_tried_again(
    step: int, world: World, tmp_path: Path
) -> None:
    world.lost = lambda request, number: number < 4 and request.step == step and world.tries == 1
    total, tally = world.sum(NOISY)
    np.testing.assert_array_equal(total, plain(tmp_path, NOISY))
    assert (world.tries, tally.asked, tally.replies) == (2, PHONES, PHONES)
    assert world.charges() == [1] * PHONES


@pytest.mark.slow
def test_too_few_vectors_are_an_error_and_the_next_try_works(world: World, tmp_path: Path) -> None:
    world.lost = lambda request, number: number < 4 and request.step == MASKING
    with pytest.raises(Lost, match="1-usage-0: secure sum: 8 survivors, at least 10 needed: wait longer") as lost:
        world.sum(NOISY)
    assert lost.value.reason == "late"
    assert (world.tries, world.charges()) == (1, [0] * 4 + [1] * 8)
    world.lost = never
    total, _ = world.sum(NOISY)
    np.testing.assert_array_equal(total, plain(tmp_path, NOISY))
    assert world.charges() == [1] * 4 + [2] * 8


def test_a_phone_that_does_not_clip_spoils_a_sum_that_is_then_discarded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Phone._encoded

    def encoded(phone: Phone, request: SumRequest, tensors: Any) -> np.ndarray:
        return honest(phone, request, tensors) + np.uint32(1000 * SPEC.scale * (phone.folder.name == "3"))

    monkeypatch.setattr(Phone, "_encoded", encoded)
    with pytest.raises(Lost, match=r"1-usage-0: norm 22\d\d.* the sum is discarded") as lost:
        world.sum(NOISY)
    assert lost.value.reason == "discarded"


def test_attempts_end(world: World) -> None:
    world.lost = lambda request, number: number < 4
    with pytest.raises(Lost, match="8 phones on the list of keys, must be 10 to 12: ask more phones") as lost:
        world.sum()
    assert lost.value.reason == "early"
    assert world.tries == 2
    assert not any((world.folder / str(number) / "phone.db").exists() for number in range(4))


def test_the_same_step_gets_the_same_bytes_and_an_altered_one_nothing(world: World) -> None:
    world.sum()
    phone = world.phone(5)
    for step in range(STEPS):
        request, tensors, reply = world.seen[5, step]
        assert phone.masked(request, tensors).tobytes() == reply
        changed = {**tensors, "secure": tensors["secure"].copy()}
        changed["secure"][-1] ^= 1
        with pytest.raises((PrivacyError, WireError)):
            phone.masked(request, changed)
    other_attempt = world.seen[5, 4][0].model_copy(update={"attempt": "f" * 32})
    with pytest.raises(WireError, match="now is step 1"):
        phone.masked(other_attempt, world.seen[5, 4][1])
    assert world.charges() == [1] * PHONES


def test_the_server_is_not_told_why(world: World) -> None:
    world.sum()
    request, tensors, _ = world.seen[5, MASKING]
    courier_side = world.grid.create_message(altered(request, tensors), "query.masked", FIRST_NODE + 5, "g")
    (reply,) = world.grid.send_and_receive([courier_side])
    assert reply.error.reason == "PrivacyError"  # what it says is `declined`, see tests/client/test_app.py


def altered(request: MaskedRequest, tensors: dict[str, Any]) -> Any:
    return pack(request, {**tensors, "secure": tensors["secure"][::-1].copy()})


def test_nothing_is_charged_before_the_vector_leaves_and_then_once(world: World) -> None:
    charged: dict[int, set[tuple[int, ...]]] = defaultdict(set)

    def look(request: MaskedRequest, number: int) -> bool:
        if number == 0:
            charged[request.step].add(tuple(world.charges()[1:3]) if request.step else (0, 0))
        return False

    world.lost = look
    world.sum()
    assert charged == {step: {(int(step > MASKING),) * 2} for step in range(STEPS)}


def test_other_centroids_than_announced_are_declined_and_cost_nothing(world: World) -> None:
    world.lost = lambda request, number: request.step == MASKING
    with pytest.raises(PrivacyError, match="0 survivors"):
        world.sum()
    world.lost = never
    request, tensors, _ = world.seen[5, MASKING - 1]
    other = {**tensors, "centroids": np.zeros((2, 2), np.float32)}
    with pytest.raises(WireError, match="not those that the sum was announced with"):
        world.phone(5).masked(request.model_copy(update={"step": MASKING}), other)
    assert world.charges() == [0] * PHONES


def test_a_vector_leaves_under_its_own_steps_number_alone(world: World) -> None:
    world.lost = lambda request, number: request.step == MASKING
    with pytest.raises(PrivacyError, match="0 survivors"):
        world.sum()
    request, tensors = world.asked[5, MASKING]
    with pytest.raises(WireError, match="under another step's number"):
        world.phone(5).masked(request.model_copy(update={"step": 2}), tensors)
    assert world.charges() == [0] * PHONES
    assert len(world.phone(5).masked(request, tensors)) > 4 * LENGTH
    assert sum(world.charges()) == 1


@pytest.mark.parametrize(
    ("update", "match"),
    [
        ({"corrupted": 0.01}, "allows for 0.01 corrupted phones, must be 0.05"),
        ({"sum": SumFields.of(replace(SPEC, min_cohort=7))}, "min_cohort is 7, must be 8"),
        ({"sum": SumFields.of(replace(SPEC, cohort=100_000))}, "cohort 100000 is outside"),
    ],
)
def test_phones_insist_on_their_own_terms(update: dict[str, Any], match: str, world: World) -> None:
    world.sum()
    request, tensors, _ = world.seen[5, 0]
    with pytest.raises(PrivacyError, match=match):
        world.phone(5).masked(request.model_copy(update=update), tensors)
    stricter = load_config(None, ["privacy.noise=false"])
    with pytest.raises(PrivacyError, match="small cohorts"):
        world.phone(5, stricter).masked(request, tensors)


def test_a_phone_that_masks_declines_plain_sums(world: World) -> None:
    request = SumRequest(run=RUN, round=1, request="b" * 64, kind="usage", sum=SumFields.of(SPEC))
    with pytest.raises(PrivacyError, match="not masked"):
        world.phone(5).answer(request, {})
    with pytest.raises(PrivacyError, match="0 replies"):
        world.sum(plain=True)


def test_a_spent_budget_is_declined_at_the_first_step(tmp_path: Path) -> None:
    world = World(tmp_path, "privacy.noise=true", "privacy.epsilon=0.05")
    with pytest.raises(PrivacyError, match="0 phones on the list of keys"):
        world.sum(NOISY)
    assert not world.answered


def test_off_erased_and_forgotten_sums_are_declined(world: World) -> None:
    world.sum()
    request, tensors, _ = world.seen[5, 5]

    def ledger() -> MaskedLedger:
        return MaskedLedger(world.folder / "5" / "phone.db", delta=1e-5, budget_epsilon=8.0)

    with ledger() as opened:
        opened.off()
    with pytest.raises(PrivacyError, match="switched off"):
        world.phone(5).masked(request, tensors)
    with ledger() as opened:
        opened.on()
        opened.erase()
    for step in range(STEPS):  # from the first one: a second vector for the same sum must not leave
        request, tensors, _ = world.seen[5, step]
        with pytest.raises(PrivacyError, match="the rest of the sum is erased"):
            world.phone(5).masked(request, tensors)
    assert world.charges() == [1] * PHONES


def test_a_phone_keeps_few_sums(world: World) -> None:
    world.sum()
    request, tensors, _ = world.seen[5, 0]
    for number in range(10, 20):
        other = request.model_copy(update={"attempt": f"{number:032x}"})
        start = messages.Start().to_bytes(other.terms().binding)
        world.phone(5).masked(other, {**tensors, "secure": np.frombuffer(start, np.uint8)})
    with closing(sqlite3.connect(world.folder / "5" / "phone.db")) as connection:
        assert connection.execute("SELECT count(*) FROM masked_sums").fetchone() == (MAX_OPEN,)


def test_a_damaged_sum_in_progress_is_found(world: World) -> None:
    world.sum()
    request, tensors, _ = world.seen[5, 2]
    with closing(sqlite3.connect(world.folder / "5" / "phone.db")) as connection, connection:
        connection.execute("UPDATE masked_sums SET state = x'00'")
    with pytest.raises(StateError, match="checksum of a sum in progress"):
        world.phone(5).masked(request, tensors)


def test_the_identity_is_made_once_for_the_owners_eyes(tmp_path: Path) -> None:
    (tmp_path / f".{IDENTITY_FILE}.1.2.tmp").write_bytes(b"half")
    first = identity(tmp_path).public_key().public_bytes_raw()
    assert identity(tmp_path).public_key().public_bytes_raw() == first
    assert (tmp_path / IDENTITY_FILE).stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / IDENTITY_FILE).write_bytes(b"short")
    with pytest.raises(StateError, match="has 5 bytes, must have 32"):
        identity(tmp_path)
