"""Out-of-set figures by hand, and rows that the page shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from benchmarks import fallback
from benchmarks.fallback import SCORES, Fallback, Seen
from benchmarks.out_of_set import calibration_error, inside, rejecting, temperature, told_apart
from benchmarks.pages.rows import where
from benchmarks.record import read_record
from benchmarks.results import PAGES
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.prune import Evidence
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_odds_by_hand():
    z = np.log(np.array([[1.0, 2, 3], [6, 1, 1]]))
    np.testing.assert_allclose(inside(z, np.array([True, False, True])), np.log([4 / 2, 7]))


def test_told_apart_by_hand():
    own = np.array([True] * 4 + [False] * 5)
    figures = told_apart(np.array([0.15, 0.5, 0.7, 0.9, 0.1, 0.2, 0.3, 0.4, 0.6]), own)
    # 0.15 is above one of five others, 0.5 above four, the rest above all. Four of five others are at most 0.4.
    assert figures == {"auroc": pytest.approx(15 / 20), "escalated_80": 0.25, "escalated_95": 0.5}


def test_reject_classes_separate_what_is_linear():
    rng = np.random.default_rng(0)
    answers = np.repeat([0, 1, 5, 7], 40)
    centres = np.array([[4, 0, 0], [0, 4, 0], [0, 0, 4], [-4, -4, 0]])
    features = np.repeat(centres, 40, 0) + rng.normal(size=(160, 3))
    score = rejecting(features, answers, np.array([0, 1]), centres + rng.normal(size=(50, 4, 3)).reshape(-1, 4, 3)[0])
    assert (score > 0).tolist() == [True, True, False, False]


def test_calibration_error_by_hand():
    # Confidence 0.9 twice, right once; 0.5 once, right: gaps 2·0.4 and 0.5 over three images.
    z = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]))
    assert calibration_error(z, np.array([0, 1, 0])) == pytest.approx((0.8 + 0.5) / 3)


@given(st.floats(0.2, 5.0), st.integers(0, 3))
def test_a_temperature_is_found_again(heat, seed):
    z = np.random.default_rng(seed).normal(0, 2, (50, 3))
    assert temperature(z * heat, z) == pytest.approx(heat, rel=1e-3)


def test_logits_that_made_the_labels_are_calibrated():
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (4000, 3))
    labels = (softmax(z, axis=1).cumsum(1) < rng.uniform(size=(4000, 1))).sum(1)
    assert calibration_error(z, labels) < 0.04 < 0.1 < calibration_error(5 * z, labels)


def test_kept_outputs_leave_what_the_submodel_says_of_the_needed_classes(bars):
    base, needed = tiny.base_model(bars[1]), np.array([1, 4])
    x, y = tiny.images(200, 5)
    evidence = Evidence.gather(base, needed, x[np.isin(y, needed)])
    kept = allocate(base.groups, evidence.curves, np.arange(tiny.CLASSES), Budget(0.6, 2))
    small = evidence.build(type(kept).of(base.groups, {**kept.kept, base.groups.output.name: needed}))
    seen, alone = (Seen.by(model, x) for model in (evidence.build(kept), small))
    np.testing.assert_allclose(seen.z[:, needed], alone.z, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen.features, alone.features, rtol=1e-3, atol=1e-4)


def measure(bars, file, **options):
    data, weights = bars
    given = {"classes": "2", "draws": 1, "macs": "0.8", "images": 20, "threads": 1, **options}
    Fallback(model=tiny.MODEL, weights=weights, data=str(data), **given).run(file)
    return read_record(file)


def test_rows_go_on_and_the_page_shows_them(bars, tmp_path, monkeypatch):
    file, gathered = tmp_path / "rows.json", []
    gather = Evidence.gather
    monkeypatch.setattr(fallback.Evidence, "gather", lambda *a, **k: gathered.append(1) or gather(*a, **k))
    measure(bars, file)
    record = measure(bars, file, draws=2, macs="0.8,0.9")
    assert len(gathered) == 3  # the first draw's budget was there, the new one needs its evidence again
    assert len(record.rows) == 2 * 2 * len(SCORES)
    for row in record.rows:
        assert 0 < row["macs_ratio"] <= row["macs_target"]
        assert 0 <= row["escalated_80"] <= row["escalated_95"] <= 1
    auroc = {score: where(record.rows, score=score, draw=0, macs_target=0.9)[0]["auroc"] for score in SCORES}
    assert (
        min(auroc["max-logit-kept"], auroc["max-logit-refitted"], auroc["full-model"], auroc["reject-features"]) > 0.9
    )
    text = PAGES["fallback"](record).text
    assert "### 2 of 6 classes, 80 % MACs" in text
    assert text.count("over the largest logit") == 2 * (len(SCORES) - 1)
