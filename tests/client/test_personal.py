"""The personal step by hand, over an engine that has no network: which submodel a phone keeps, and when none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.client.engine import Engine
from fedcaptor.client.fallback import ABSTAINED, answer
from fedcaptor.client.kept_models import holds_full, keep, read_models
from fedcaptor.client.offer import Offer
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.common.arrays import Images
from fedcaptor.common.config import Config, parse
from fedcaptor.common.plan import Plan
from tests.client.fake_engine import GROUPS, FakeEngine, pictures

COUNTS = np.array([10.0, 10.0, 0.0])
USE = pictures(0, 1, 0, 1)
CENTROIDS = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
PLANS = [Plan.of(GROUPS, {"a": [0, 1, 2], "b": range(6)}), Plan.of(GROUPS, {"a": [0], "b": [0]})]
CLUSTER_MACS = GROUPS.macs_ratio({"a": 3, "b": 6, "c": 2})


def config(**personal: Any) -> Config:
    return parse(
        {
            "planner": {"multiple": 1},
            "personal": {"ladder": [0.3, 0.6], "tolerance": 0.1, **personal},
            "usage": {"prior": 0.0, "min_share": 0.1},
            "fallback": {"retention": 0.9},
        }
    )


def step(check: Images, offer: Offer | None = None, engine: Engine | None = None, **personal: Any) -> Personalised:
    return personalise(engine or FakeEngine(), offer or Offer(), COUNTS, USE, check, config(**personal))


def kept_macs(found: Personalised) -> float:
    assert found.submodel is not None
    return found.submodel.macs_ratio


def test_the_smallest_rung_that_agrees_is_kept() -> None:
    easy = step(pictures(0, 1, 0, 1, hard=0.1))
    assert (easy.kind, easy.classes.tolist(), easy.agreement) == ("personal", [0, 1], 1.0)
    assert kept_macs(easy) <= 0.3
    harder = step(pictures(0, 1, 0, 1, hard=0.4))
    assert harder.kind == "personal"
    assert 0.4 < kept_macs(harder) <= 0.6


def test_the_last_rung_may_disagree_twice_as_often() -> None:
    hard = np.concatenate([pictures(*[0, 1] * 9), pictures(1, 1, 1, hard=0.99)])  # the last three are taken for 0
    found = step(hard)
    assert found.agreement == pytest.approx(18 / 21)
    assert 0.3 < kept_macs(found) <= 0.6
    assert step(hard, tolerance=0.05).kind == "full"


def test_the_clusters_submodel_serves_where_no_rung_does() -> None:
    found = step(pictures(1, 1, 1, 1, hard=0.55), Offer(PLANS, CENTROIDS))
    assert (found.kind, found.cluster) == ("cluster", 0)
    assert kept_macs(found) == pytest.approx(CLUSTER_MACS)
    assert found.submodel is not None
    assert found.submodel.classes.tolist() == [0, 1]
    assert found.agreement == found.agreement_cluster == 1


def test_the_full_model_stays_where_nothing_smaller_agrees() -> None:
    found = step(pictures(1, 1, 1, 1, hard=0.99), Offer(PLANS, CENTROIDS))
    assert (found.kind, found.submodel, found.agreement, found.agreement_cluster) == ("full", None, 1.0, 0.0)
    assert (found.threshold, found.escalated) == (-np.inf, 0.0)


def test_tuning_is_tried_where_it_is_wanted() -> None:
    check = pictures(1, 1, 1, 1, hard=0.4)
    assert kept_macs(step(check, engine=FakeEngine(tuning=0.3))) > 0.3
    assert kept_macs(step(check, engine=FakeEngine(tuning=0.3), tune_steps=5)) <= 0.3


def test_images_of_other_classes_are_no_evidence_against_a_submodel() -> None:
    found = step(np.concatenate([pictures(*[0, 1] * 10, hard=0.1), pictures(2, 2, 2, hard=0.99)]))
    assert (found.kind, found.agreement) == ("personal", 1.0)


def test_without_an_image_of_the_own_classes_the_full_model_stays() -> None:
    found = personalise(FakeEngine(), Offer(), COUNTS, USE[:0], USE[:0], config())
    assert (found.kind, found.submodel) == ("full", None)
    reference = Offer(reference=pictures(*[0, 1, 2] * 3), labels=np.array([0, 1, 2] * 3))  # a third of them judges
    assert personalise(FakeEngine(), reference, COUNTS, USE[:0], USE[:0], config()).kind == "personal"


def test_without_the_personal_step_there_is_the_clusters_plan_or_nothing() -> None:
    check = pictures(0, 1, hard=0.1)
    assert step(check, enabled=False).kind == "full"
    assert step(check, Offer(PLANS, CENTROIDS), enabled=False).kind == "cluster"


def test_the_threshold_escalates_the_wanted_share_of_own_images() -> None:
    check = np.concatenate([pictures(*[0, 1] * 9), pictures(0, 1) // 8])
    found = step(check)
    assert found.escalated == pytest.approx(0.1)


@pytest.mark.parametrize(("images", "kind", "macs"), [(0, "full", 1.0), (3, "personal", 0.6), (40, "personal", 0.3)])
def test_few_check_images_keep_a_larger_model(images: int, kind: str, macs: float) -> None:
    """All of them agree with the smallest rung: three are evidence enough for the largest rung's tolerance alone."""
    found = step(pictures(*[0, 1] * 20, hard=0.1)[:images], tolerance=0.04)
    assert found.kind == kind
    assert macs - 0.3 < (kept_macs(found) if found.submodel else 1.0) <= macs


def test_without_a_check_image_neither_rung_nor_cluster_is_kept() -> None:
    offer, check = Offer(PLANS, CENTROIDS), pictures(0, 1, hard=0.1)
    assert step(check[:0], offer).kind == "full"
    assert step(check, offer, ladder=[], tolerance=0.04).kind == "full"
    assert step(check, offer, ladder=[], tolerance=0.04, confidence=0.5).kind == "cluster"


@pytest.mark.parametrize(("own", "kind"), [(30, "personal"), (4, "full")])
def test_a_submodel_whose_escalations_cost_more_than_it_saves_is_not_kept(own: int, kind: str) -> None:
    """The owner meets one class most, and as many of two others together as make the full model answer often."""
    settings = parse(
        {
            "planner": {"multiple": 1},
            "personal": {"ladder": [0.6], "tolerance": 0.9},
            "usage": {"prior": 0.0, "max_classes": 1},
            "fallback": {"score": "max-logit"},
        }
    )
    check = np.concatenate([pictures(*[0] * own), pictures(*[1] * 3, *[2] * 3)])

    def found(fallback: str) -> Personalised:
        changed = settings.model_copy(update={"fallback": settings.fallback.model_copy(update={"mode": fallback})})
        return personalise(FakeEngine(), Offer(), np.zeros(3), pictures(0, 0, 0), check, changed)

    assert found("kept_full").classes.tolist() == [0]
    assert found("kept_full").kind == kind
    assert found("abstain").escalated == pytest.approx(6 / (6 + own))
    assert found("abstain").kind == "personal"  # nobody answers what it is unsure of: that costs nothing


def test_what_the_owner_corrected_counts() -> None:
    def classes(*corrections: int) -> list[int]:
        use, corrected = pictures(0, 0, 0, 1), np.array(corrections, dtype=np.int16)
        found = personalise(
            FakeEngine(), Offer(), np.zeros(3), use, USE[:0], config(), corrections=corrected if corrections else None
        )
        return list(found.classes)

    assert classes() == classes(-1, -1, -1, -1) == classes(0, 0, 0, 1) == [0, 1]
    assert classes(-1, -1, -1, 2) == [0, 2]
    assert classes(-1, -1, 2, -1) == [0, 1, 2]


@pytest.mark.parametrize("mode", ["kept_full", "cluster", "abstain"])
def test_what_is_kept_answers_after_a_restart_by_any_engine(mode: str, tmp_path: Path) -> None:
    engine = FakeEngine()
    assert holds_full(tmp_path, mode)
    found = step(pictures(0, 1, 0, 1, hard=0.1))
    larger = FakeEngine().restricted(np.array([0, 1])) if mode == "cluster" else None
    note = keep(tmp_path, engine, found, larger, 3)
    assert note == Outcome.read(tmp_path)
    assert (note.kind, note.classes, note.base_fetches) == ("personal", (0, 1), 3)
    assert note.macs == kept_macs(found)
    assert holds_full(tmp_path, mode) == (mode == "kept_full")
    models = read_models(tmp_path, engine, mode)
    assert models.own is not None
    assert found.submodel is not None
    assert models.own.plan.digest == found.submodel.plan.digest
    unsure = pictures(1, hard=0.0) // 50
    expected = {"kept_full": 1, "cluster": 1, "abstain": ABSTAINED}[mode]
    assert answer(engine, models, config().fallback, unsure).labels.tolist() == [expected]


def test_nothing_small_is_kept_as_a_note_alone(tmp_path: Path) -> None:
    keep(tmp_path, FakeEngine(), step(pictures(0, 1, hard=0.1)), None, 0)
    keep(tmp_path, FakeEngine(), step(pictures(1, 1, hard=0.99)), None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    assert read_models(tmp_path, FakeEngine(), "abstain").own is None


@pytest.mark.slow
def test_the_personal_step_itself_needs_no_torch() -> None:
    code = "import sys; import fedcaptor.client.learner; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("gain", "tolerance", "precision"),
    [(0.0, 0.1, "int8"), (-0.25, 0.1, "float32"), (-0.25, 0.9, "int8"), (None, 0.1, "float32")],
)
def test_eight_bits_are_kept_where_they_are_as_good_as_the_submodel_had_to_be(
    gain: float | None, tolerance: float, precision: str, tmp_path: Path
) -> None:
    """Half of the images are too hard for the submodel in eight bits, which the second tolerance allows."""
    check = np.concatenate([pictures(1, 1, hard=0.0), pictures(1, 1, hard=0.1)])
    engine = FakeEngine(eight_bits=gain)
    found = step(check, engine=engine, precision="int8", tolerance=tolerance)
    assert (found.kind, found.precision) == ("personal", precision)
    assert found.agreement == (0.5 if gain and tolerance == 0.9 else 1.0)
    note = keep(tmp_path, engine, found, None, 0)
    assert (note.precision, note.file, note.larger_file) == (precision, "submodel.safetensors", None)
    assert note.outputs == (0, 1)
    assert step(check, engine=engine, tolerance=tolerance).precision == "float32"  # it was not asked for


def test_eight_bits_of_the_last_rung_may_lose_what_the_last_rung_may() -> None:
    check = np.concatenate([pictures(*[0, 1] * 9), pictures(1, 1, 1, hard=0.99)])
    found = step(check, engine=FakeEngine(eight_bits=0.0), precision="int8")
    assert (found.precision, found.agreement) == ("int8", pytest.approx(18 / 21))
