"""One phone of a small world: what it takes, what it keeps, what that costs, and how it notices that habits changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from fedcaptor.client.fallback import ABSTAINED, Models, answer
from fedcaptor.client.folder import ADAPTATION_FILE, DELIVERY_FILE
from fedcaptor.client.from_cluster import personalise_from_cluster
from fedcaptor.client.kept_models import holds_full, read_models
from fedcaptor.client.learner import Learner
from fedcaptor.client.offer import Offer, read_offer
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.client.phone import Phone
from fedcaptor.client.reply_timing import ReplyTiming
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.client.usage import UsageLog
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config, parse
from fedcaptor.common.data import mosaic
from fedcaptor.common.errors import PlanError, PrivacyError, WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan_bits import pack_plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.submodel_file import digest, encode
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import prune
from fedcaptor.common.weights_file import save_state
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
OWN, CLUSTER = [1, 4], [0, 1, 4]
BOUNDS = parse({}).delivery


@dataclass
class Feed:
    """The same owner in every round, but from round `drifted` to `back`: then another one, of classes that the cluster
    lacks.
    """

    drifted: int = 99
    correct: bool = False
    back: int = 100

    def use(self, round: int) -> NDArray[np.uint8]:
        return self._of(round, 40)[0]

    def check(self, round: int) -> NDArray[np.uint8]:
        return self._of(round + 100, 30)[0]

    def corrections(self, round: int) -> NDArray[np.int16]:
        labels = self._of(round, 40)[1].astype(np.int16)
        return labels if self.correct else np.full(len(labels), -1, dtype=np.int16)

    def _of(self, seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        x, y = tiny.images(count * 6, seed)
        chosen = np.isin(y, [2, 5] if self.drifted <= seed % 100 < self.back else OWN)
        return x[chosen][:count], y[chosen][:count]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny.base_model(tiny.write(tmp_path_factory.mktemp("tiny"))[1])


@pytest.fixture(scope="module")
def cluster(base: BaseModel) -> Submodel:
    x, y = tiny.images(300, 3)
    return prune(base, np.array(CLUSTER), x[np.isin(y, CLUSTER)], Budget(0.6, 2))


def config(delivery: str, fallback: str, outputs: str = "own", **usage: Any) -> Config:
    return parse(
        {
            "delivery": {"mode": delivery},
            "fallback": {"mode": fallback, "outputs": outputs},
            "planner": {"multiple": 2},
            "personal": {"ladder": [0.45], "rows": 256, "tolerance": 0.2},
            "usage": {"prior": 0.0, **usage},
        }
    )


def delivery(base: BaseModel, cluster: Submodel, mode: str, round: int = 1) -> tuple[DeliverRequest, dict[str, Any]]:
    """What a server sends that knows two clusters, the phone's being number 1."""
    centroids = np.zeros((2, tiny.CLASSES), dtype=np.float32)
    centroids[0, [2, 3, 5]], centroids[1, CLUSTER] = 1 / 3, 1 / 3
    tensors: dict[str, Any] = {"centroids": centroids}
    digests: dict[int, str] = {}
    if mode != "choose":
        x, y = tiny.images(60, 8)
        tensors |= {"reference": mosaic.code(x), "reference_labels": y.astype(np.int32)}
        tensors["calibration"] = Calibration(1.1, np.linspace(-0.1, 0.1, tiny.CLASSES)).packed()
        tensors["plan.1"] = pack_plan(dict(cluster.plan.kept), base.groups)
        digests[1] = cluster.plan.digest
    if mode == "submodel":
        state = state_of(cluster.module)
        tensors["submodel.1"] = encode(state)
        digests[1] = digest(cluster.plan, tensors["submodel.1"])
    if mode == "plan":
        tensors["plan.0"], digests = tensors["plan.1"], {0: digests[1], 1: digests[1]}
    names = {"weights": base.weights_digest, "clusters": tuple(digests), "digests": tuple(digests.values())}
    return DeliverRequest(run="a" * 64, round=round, request="b" * 64, mode=mode, **names), tensors  # type: ignore[arg-type]


def phone(
    folder: Path, base: BaseModel, settings: Config, feed: Feed | None = None, timing: ReplyTiming | None = None
) -> Phone:
    learner = Learner(folder, TorchEngine(base), feed or Feed(), settings, durable=False)
    return Phone(folder, lambda: learner, settings, seed=(1,), durable=False, timing=timing or ReplyTiming())


@pytest.mark.parametrize("mode", ["plan", "submodel"])
@pytest.mark.parametrize("fallback", ["kept_full", "cluster", "abstain"])
@pytest.mark.parametrize("outputs", ["own", "all"])
def test_every_mode_ends_with_a_submodel_and_its_fallback(
    tmp_path: Path, base: BaseModel, cluster: Submodel, mode: str, fallback: str, outputs: str
) -> None:
    one = phone(tmp_path, base, config(mode, fallback, outputs))
    assert holds_full(tmp_path, fallback)
    if mode == "submodel":
        assert one.deliver(*delivery(base, cluster, "choose")) == 1
    assert one.deliver(*delivery(base, cluster, mode)) is None
    models = read_models(tmp_path, TorchEngine(base), fallback)
    assert models.own is not None
    of_base = CLUSTER if mode == "submodel" and fallback != "kept_full" else [*range(tiny.CLASSES)]
    assert models.own.classes.tolist() == (OWN if outputs == "own" else of_base)
    assert models.classes.tolist() == OWN
    assert models.own.macs_ratio <= 0.45 * (1 + 1e-9)
    note = Outcome.read(tmp_path)
    assert note is not None
    assert (note.cluster, note.base_fetches) == (1, 0)
    assert holds_full(tmp_path, fallback) == (fallback == "kept_full")
    assert (tmp_path / "cluster.safetensors").exists() == (fallback == "cluster")
    larger = {"kept_full": [*range(tiny.CLASSES)], "cluster": CLUSTER, "abstain": None}[fallback]
    assert (models.larger and models.larger.classes.tolist()) == larger
    x, y = tiny.images(200, 21)
    own = np.isin(y, OWN)
    answers = answer(TorchEngine(base), models, one.config.fallback, x[own])
    sure = ~answers.escalated
    assert (answers.labels[sure] == y[own][sure]).mean() > 0.8
    assert set(answers.labels[sure].tolist()) <= set(OWN)


def test_a_phone_without_the_full_model_takes_channels_of_its_cluster_alone(base: BaseModel, cluster: Submodel) -> None:
    offer = Offer(centroids=np.array([[1 / 3, 1 / 3, 0, 0, 1 / 3, 0]]), submodel=cluster)
    feed, counts = Feed(), np.array([0, 20, 0, 0, 20, 0.0])
    settings = config("submodel", "abstain")
    found = personalise_from_cluster(TorchEngine(base), cluster, offer, counts, feed.use(1), feed.check(1), settings)
    assert found.submodel is not None
    assert found.kind == "personal"
    assert found.agreement >= 0.6
    assert found.prior.sum() == pytest.approx(1)
    for name, kept in found.submodel.plan.kept.items():
        assert np.isin(kept, cluster.plan.kept.get(name, kept)).all()
    assert found.submodel.macs_ratio <= 0.45 * (1 + 1e-9)
    nothing = personalise_from_cluster(
        TorchEngine(base), cluster, offer, counts, feed.use(1)[:0], feed.check(1), settings
    )
    assert nothing.submodel is not None
    assert (nothing.kind, nothing.submodel.classes.tolist()) == ("cluster", OWN)
    for name, kept in nothing.submodel.plan.kept.items():
        assert name == base.groups.output.name or kept.tolist() == cluster.plan.kept[name].tolist()


def test_of_corrections_a_phone_without_the_full_model_takes_those_to_classes_of_its_cluster(
    base: BaseModel, cluster: Submodel
) -> None:
    offer, feed = Offer(centroids=np.array([[1 / 3, 1 / 3, 0, 0, 1 / 3, 0]]), submodel=cluster), Feed()

    def classes(label: int) -> list[int]:
        settings, corrections = config("submodel", "abstain"), np.full(40, -1, dtype=np.int16)
        corrections[:10] = label
        found = personalise_from_cluster(
            TorchEngine(base),
            cluster,
            offer,
            np.zeros(tiny.CLASSES),
            feed.use(1),
            feed.check(1),
            settings,
            corrections=corrections,
        )
        return list(found.classes)

    assert classes(-1) == classes(2) == OWN
    assert classes(0) == CLUSTER


def test_who_answers_unsure_images(base: BaseModel, cluster: Submodel) -> None:
    engine = TorchEngine(base)
    x, _ = tiny.images(50, 30)
    prior = np.full(tiny.CLASSES, 1 / tiny.CLASSES)
    settings = config("plan", "cluster").fallback
    models = Models(cluster, None, prior, np.inf, cluster.classes)
    assert (answer(engine, models, settings, x).labels == ABSTAINED).all()
    full = answer(engine, replace(models, larger=engine.whole()), settings, x)
    np.testing.assert_array_equal(full.labels, engine.whole().predict(x))
    np.testing.assert_array_equal(
        answer(engine, replace(models, own=engine.whole(), larger=cluster), settings, x).labels,
        cluster.predict(x),
    )
    assert full.escalated.all()


def test_a_phone_that_slices_for_itself_names_no_cluster(tmp_path: Path, base: BaseModel, cluster: Submodel) -> None:
    for mode in ("choose", "submodel"):
        with pytest.raises(PrivacyError, match="must be by plan"):
            phone(tmp_path, base, config("plan", "kept_full")).deliver(*delivery(base, cluster, mode))


def test_a_submodel_that_is_not_the_announced_one_is_refused(base: BaseModel, cluster: Submodel) -> None:
    request, tensors = delivery(base, cluster, "submodel")
    assert read_offer(request, tensors, TorchEngine(base), BOUNDS).submodel is not None
    flipped = tensors["submodel.1"].copy()
    flipped[len(flipped) // 2] ^= 1
    cases = {
        "wrong_digest": [{"submodel.1": flipped}, {"plan.1": tensors["plan.1"] | 128}],
        "missing_tensor": [{"centroids": tensors["centroids"][:1]}],
    }
    for reason, changes in cases.items():
        for change in changes:
            with pytest.raises(WireError) as caught:
                read_offer(request, {**tensors, **change}, TorchEngine(base), BOUNDS)
            assert caught.value.reason == reason
    without = {name: tensor for name, tensor in tensors.items() if name != "submodel.1"}
    bare = request.model_copy(update={"digests": (cluster.plan.digest,)})
    with pytest.raises(WireError, match="missing_tensor"):
        read_offer(bare, without, TorchEngine(base), BOUNDS)


@pytest.mark.parametrize("mode", ["plan", "submodel"])
@pytest.mark.parametrize(
    "damage",
    [
        {"calibration": np.full(tiny.CLASSES + 1, np.nan, np.float32)},
        {"calibration": np.ones(tiny.CLASSES, np.float32)},
        {"reference": np.full(300, 7, np.uint8)},
        {"reference": mosaic.code(tiny.images(60, 8)[0])[:300]},
        {"reference": mosaic.code(tiny.images(200, 8)[0])},
        {"reference_labels": np.full(60, tiny.CLASSES, np.int32)},
        {"reference_labels": np.full(60, -1, np.int32)},
        {"reference_labels": None},
        {"reference": None},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_delivery_is_refused_and_nothing_of_it_is_stored(
    tmp_path: Path, base: BaseModel, cluster: Submodel, mode: str, damage: dict[str, Any]
) -> None:
    one = phone(tmp_path, base, config(mode, "kept_full"))
    if mode == "submodel":
        one.deliver(*delivery(base, cluster, "choose"))
    request, tensors = delivery(base, cluster, mode)
    changed = {name: tensor for name, tensor in {**tensors, **damage}.items() if tensor is not None}
    with pytest.raises(WireError) as caught:
        one.deliver(request, changed)
    assert caught.value.reason == "wrong_shape"
    assert {path.name for path in tmp_path.iterdir()} <= {"phone.db"}


def test_personalising_again_from_plans_fetches_the_deleted_model(
    tmp_path: Path, base: BaseModel, cluster: Submodel
) -> None:
    one = phone(tmp_path, base, config("plan", "abstain", half_life=20.0, drift=0.05), Feed(drifted=2, back=3))
    drifted = []
    for round in (1, 2, 3):
        one.deliver(*delivery(base, cluster, "plan", round))
        note = Outcome.read(tmp_path)
        assert note is not None
        drifted.append(note.figures()["drifted"])
    assert note.base_fetches == 2
    assert drifted == [0, 1, 1]


def test_habits_that_drifted_are_noted_even_where_the_delivery_is_given_up(
    tmp_path: Path, base: BaseModel, cluster: Submodel
) -> None:
    one = phone(tmp_path, base, config("plan", "kept_full", half_life=20.0, drift=0.05), Feed(drifted=2))
    one.deliver(*delivery(base, cluster, "plan", 1))
    before = Outcome.read(tmp_path)
    assert before is not None
    with patch("fedcaptor.client.learner.personalise", side_effect=PlanError("no plan")):
        one.deliver(*delivery(base, cluster, "plan", 2))
    assert not (tmp_path / DELIVERY_FILE).exists()
    assert Outcome.read(tmp_path) == before.model_copy(update={"drifted": True})


def test_habits_that_stay_are_noted_as_such(tmp_path: Path, base: BaseModel, cluster: Submodel) -> None:
    one = phone(tmp_path, base, config("plan", "kept_full"))
    one.deliver(*delivery(base, cluster, "plan", 1))
    before = Outcome.read(tmp_path)
    assert before is not None
    before.model_copy(update={"drifted": True}).write(tmp_path)
    one.deliver(*delivery(base, cluster, "plan", 2))
    assert Outcome.read(tmp_path) == before


@pytest.mark.parametrize("fallback", ["cluster", "abstain"])
def test_unanswered_and_escalated_images_show_that_habits_changed(
    tmp_path: Path, base: BaseModel, cluster: Submodel, fallback: str
) -> None:
    """The new classes are strange to own submodel and cluster; uncorrected, they count as something else at least."""
    one = phone(tmp_path, base, config("submodel", fallback, half_life=20.0), Feed(drifted=2))
    one.deliver(*delivery(base, cluster, "submodel", 1))
    note = Outcome.read(tmp_path)
    before = one.learner().usage(1)
    after = one.learner().usage(2)
    assert after[OWN].sum() < before[OWN].sum() - 0.1
    with one.learner()._log() as log:
        assert log.drift() > 0
    assert after.sum() == pytest.approx(1)
    assert Outcome.read(tmp_path) == note


def test_a_part_of_what_the_cluster_answered_counts_for_classes_that_it_lacks(
    tmp_path: Path, base: BaseModel, cluster: Submodel
) -> None:
    one = phone(tmp_path, base, config("submodel", "cluster"))
    one.deliver(*delivery(base, cluster, "submodel", 1))
    nothing = np.full(40, -1, dtype=np.int16)
    shares, labels = one.learner()._seen(2, np.zeros(tiny.CLASSES), nothing)
    given = answer(
        TorchEngine(base),
        read_models(tmp_path, TorchEngine(base), "cluster"),
        one.config.fallback,
        one.learner().feed.use(2),
    )
    assert given.escalated.any()
    assert not given.escalated.all()
    np.testing.assert_array_equal(labels, given.labels)
    np.testing.assert_allclose(shares[~given.escalated, given.labels[~given.escalated]], 1)
    np.testing.assert_allclose(shares[given.escalated, given.labels[given.escalated]], 0.5)
    np.testing.assert_allclose(shares[given.escalated][:, [2, 3, 5]], 0.5 / 3)


def test_corrections_name_what_nobody_answered(tmp_path: Path, base: BaseModel, cluster: Submodel) -> None:
    one = phone(tmp_path, base, config("submodel", "abstain", half_life=20.0), Feed(drifted=2, correct=True))
    one.deliver(*delivery(base, cluster, "submodel", 1))
    one.learner().usage(1)
    after = one.learner().usage(2)
    with one.learner()._log() as log:
        assert log.drift() > one.config.usage.drift
    assert after[[2, 5]].sum() > 0.5


class Correcting(Feed):
    """Its owner says that half of the images show class 3."""

    def corrections(self, round: int) -> NDArray[np.int16]:
        return np.repeat([3, -1], 20).astype(np.int16)


def test_a_corrected_class_becomes_an_own_one(tmp_path: Path, base: BaseModel, cluster: Submodel) -> None:
    phone(tmp_path, base, config("plan", "kept_full"), Correcting()).deliver(*delivery(base, cluster, "plan"))
    note = Outcome.read(tmp_path)
    assert note is not None
    assert 3 in note.classes


class Killed(BaseException):
    pass


def test_a_phone_killed_before_its_mark_personalises_again(
    tmp_path: Path, base: BaseModel, cluster: Submodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = phone(tmp_path, base, config("plan", "kept_full"))

    def killed(log: UsageLog) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(UsageLog, "mark", killed)
        with pytest.raises(Killed):
            one.deliver(*delivery(base, cluster, "plan"))
    note = tmp_path / "outcome.json"
    assert (tmp_path / DELIVERY_FILE).exists()
    first = note.stat().st_mtime_ns
    one.deliver(*delivery(base, cluster, "plan"))
    second = note.stat().st_mtime_ns
    one.deliver(*delivery(base, cluster, "plan"))
    assert first < second == note.stat().st_mtime_ns


class Dim(Feed):
    """Photos in a third of the light."""

    def _of(self, seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        x, y = super()._of(seed, count)
        return x // 3, y


@pytest.mark.parametrize(("mode", "adapts"), [("plan", True), ("submodel", False)])
def test_a_phone_adapts_to_its_own_look_unless_its_submodel_is_of_the_shipped_model(
    tmp_path: Path, base: BaseModel, cluster: Submodel, mode: str, adapts: bool
) -> None:
    phone(tmp_path, base, config(mode, "kept_full"), Dim()).deliver(*delivery(base, cluster, mode))
    assert (tmp_path / ADAPTATION_FILE).exists() == adapts


def test_a_phone_does_not_adapt_where_the_server_s_images_are_no_photos(
    tmp_path: Path, base: BaseModel, cluster: Submodel
) -> None:
    request, tensors = delivery(base, cluster, "plan")
    phone(tmp_path, base, config("plan", "kept_full"), Dim()).deliver(
        request.model_copy(update={"synthetic": True}), tensors
    )
    assert (tmp_path / "outcome.json").exists()
    assert not (tmp_path / ADAPTATION_FILE).exists()


def test_a_personalisation_clears_what_a_kill_left_of_an_earlier_one(
    tmp_path: Path, base: BaseModel, cluster: Submodel
) -> None:
    kept = {"cluster.safetensors", "look.safetensors", "outcome.json", "phone.db", "submodel.safetensors"}
    for name in kept - {"phone.db", "look.safetensors"}:
        (tmp_path / f".{name}.1.2.tmp").write_bytes(b"half")
    phone(tmp_path, base, config("plan", "cluster")).deliver(*delivery(base, cluster, "plan"))
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_submodel_that_is_not_the_note_s_is_not_used(tmp_path: Path, base: BaseModel, cluster: Submodel) -> None:
    one = phone(tmp_path, base, config("plan", "kept_full"))
    one.deliver(*delivery(base, cluster, "plan"))
    assert read_models(tmp_path, TorchEngine(base), "kept_full").own is not None
    x, y = tiny.images(300, 3)
    other = prune(base, np.array([2, 5]), x[np.isin(y, [2, 5])], Budget(0.4, 2))
    state = state_of(other.module)
    save_state(tmp_path / "submodel.safetensors", state, {})
    assert read_models(tmp_path, TorchEngine(base), "kept_full").own is None


@pytest.mark.slow
def test_a_submodel_that_disagrees_too_often_is_tuned_where_that_is_wanted(base: BaseModel) -> None:
    rng = np.random.default_rng(0)
    use, check = (
        np.clip(x + rng.normal(0, 120, x.shape), 0, 255).astype(np.uint8)  # noisier than merging alone can cope with
        for x in (tiny.images(40, 5)[0], tiny.images(200, 6)[0])
    )

    def own(steps: int) -> Personalised:
        settings = parse(
            {
                "planner": {"multiple": 2},
                "personal": {"ladder": [0.3, 0.6], "tolerance": 0.05, "tune_steps": steps},
            }
        )
        return personalise(TorchEngine(base), Offer(), np.ones(tiny.CLASSES), use, check, settings)

    untuned, tuned = own(0), own(200)
    assert untuned.submodel is not None
    assert tuned.submodel is not None
    assert untuned.submodel.macs_ratio > 0.3 >= tuned.submodel.macs_ratio
    assert tuned.agreement >= 0.87
