"""What the oracle makes of true labels, and how it reads the answers of a cluster's submodel."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedcaptor.client.kept_models import keep
from fedcaptor.client.personal import Personalised
from fedcaptor.common.config import load_config
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.prune import prune
from fedcaptor.simulations.oracle import Oracle, _auroc, _cluster_answers
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]], dtype=np.float32)  # of classes 2, 5 and 7


@pytest.mark.parametrize(
    ("own", "limited"),
    [([5, 7], [5, 7]), ([2], [2, 2]), ([5, 9], [5, 5]), ([0, 9], [2, 7])],
)
def test_answers_are_limited_to_the_phone_s_own_classes(own, limited):
    submodel = SimpleNamespace(classes=np.array([2, 5, 7]), scores=lambda images: SCORES)
    of_all, of_own = _cluster_answers(submodel, np.zeros((2, 1, 1, 1), dtype=np.uint8), own)
    assert of_all.tolist() == [2, 7]
    assert of_own.tolist() == limited


@pytest.fixture
def four(bars: tuple[Path, Path], tmp_path: Path) -> tuple[Oracle, np.ndarray, np.ndarray]:
    """An oracle of two owners, with the true labels [4] and the full model's logits [4, C] of all test images.

    Owner 0 meets classes 0 and 1 and has four test images, the last of another class; owner 1 has none.
    """
    x, y = tiny.images(40, 77)
    inside, outside = np.flatnonzero(np.isin(y, [0, 1])), np.flatnonzero(y > 1)
    index = np.full((1, 2, 6), -1)
    index[0, 0, :4] = [*inside[:3], outside[0]]
    shares = np.array([[[0.75, 0.25, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]])
    (tmp_path / "oracle").mkdir()
    for name, values in {"images": x, "labels": y, "test": index, "shares": shares}.items():
        np.save(tmp_path / "oracle" / f"{name}.npy", values)
    shown = index[0, 0, :4]
    base, config = tiny.base_model(bars[1]), load_config(None, tiny.overrides(*bars))
    return Oracle(tmp_path, config, base, []), y[shown], logits(base.module, normalise(x[shown], base.mean, base.std))


def test_a_phone_without_anything_answers_with_the_full_model(four: tuple[Oracle, np.ndarray, np.ndarray]) -> None:
    oracle, truth, full = four
    figures = oracle.phone(0, 1)
    right = full.argmax(1) == truth
    assert figures.classes == 2
    assert (figures.macs_ratio, figures.effective_macs_ratio, figures.stored_bytes) == (1, 1, 0)
    assert figures.accuracy == figures.accuracy_full == figures.accuracy_cluster == pytest.approx(right[:3].mean())
    assert (figures.kind, figures.own, figures.accuracy_submodel) == ("full", (0, 1), figures.accuracy)
    assert figures.accuracy_full_limited == pytest.approx((full[:, :2].argmax(1) == truth)[:3].mean())
    assert figures.accuracy_outside == right[3]
    assert (len(figures.inside), len(figures.outside)) == (3, 1)


def test_the_submodel_s_accuracy_counts_no_escalation(four: tuple[Oracle, np.ndarray, np.ndarray]) -> None:
    """A phone whose submodel is of other classes and unsure of every image: the full model answers all."""
    oracle, truth, full = four
    folder, base = oracle._directory / "phones" / "000000", oracle._shipped.base
    others, prior = np.array([4, 5]), np.full(tiny.CLASSES, 1 / tiny.CLASSES)
    submodel = prune(base, others, tiny.images(60, 5)[0], Budget(0.5, 2))
    result = Personalised("personal", others, prior, submodel, 0.5, 0.5, 1e9, 1.0, -1)
    keep(folder, oracle._shipped, result, None, 0)
    figures = oracle.phone(0, 1)
    assert figures.accuracy_submodel == 0
    assert figures.accuracy == pytest.approx((full.argmax(1) == truth)[:3].mean()) != 0
    assert (figures.kind, figures.escalated) == ("personal", 1)


def test_an_owner_without_test_images_has_no_accuracy(four: tuple[Oracle, np.ndarray, np.ndarray]) -> None:
    nobody = four[0].phone(1, 1)
    assert math.isnan(nobody.accuracy)
    assert math.isnan(nobody.accuracy_outside)
    assert math.isnan(nobody.escalated)
    assert math.isnan(nobody.effective_macs_ratio)
    assert math.isnan(nobody.auroc)
    assert nobody.macs_ratio == 1


def test_expected_accuracy_weighs_everybody_s_images_by_the_owner_s_usage(
    four: tuple[Oracle, np.ndarray, np.ndarray],
) -> None:
    oracle = four[0]
    everything = np.arange(len(oracle._labels))
    right = oracle._scores(oracle._shipped, 0, everything).argmax(1) == oracle._labels
    wrong = np.flatnonzero(right & (oracle._labels == 0))[0]
    full = oracle._full[0, oracle._shipped]
    full[wrong] = -full[wrong]  # the network answers one image of class 0 as it should not
    first = 1 - 1 / (oracle._labels == 0).sum()
    found, nobody = oracle.expected(0, 1), oracle.expected(1, 1)
    assert found.full == pytest.approx(0.75 * first + 0.25)
    assert found.personalised == found.submodel == 1  # by the network itself
    assert nobody.full == 1  # without a test image of its own


def test_auroc_by_hand():
    inside = np.array([True, True, True, False, False])
    assert _auroc(inside, np.array([3.0, 2.0, 0.5, 1.0, 0.0])) == pytest.approx(5 / 6)
    assert math.isnan(_auroc(inside, np.zeros(5)))
    assert math.isnan(_auroc(np.ones(5, dtype=bool), np.arange(5.0)))
    assert math.isnan(_auroc(np.zeros(0, dtype=bool), np.zeros(0)))
