"""Federated training of an output layer: the sum is that of phones one by one, labels that are told are learned, and
noise is that of the accounting.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.corrections import KNOWN, PARTS, Corrections
from benchmarks.output_updates import Descent, Held, answers, sum_of_updates, train
from benchmarks.record import Record
from benchmarks.results import PAGES
from fedcaptor.common.arrays import Floats
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.softmax import softmax

CLASSES, PHOTOS = 4, 60
DESCENT = Descent(rounds=20, rate=4.0, clip=0.6, agreed=0.2, multiplier=0.0)
MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}


@pytest.fixture
def held() -> Held:
    """Seven phones, some with fewer photos, each of one of two looks; the network answers class 3 too seldom."""
    rng = np.random.default_rng(0)
    labels, blocks = np.arange(PHOTOS) % CLASSES, np.arange(PHOTOS) * 2 // PHOTOS
    inputs = np.column_stack([np.eye(CLASSES)[labels] + rng.normal(0, 0.3, (PHOTOS, CLASSES)), np.ones(PHOTOS)])
    logits = 3 * np.eye(CLASSES)[labels] + rng.normal(0, 1, (PHOTOS, CLASSES)) - 4 * np.eye(CLASSES)[3]
    photos = rng.integers(0, PHOTOS // 2, (7, 9)) + PHOTOS // 2 * (np.arange(7) % 2)[:, None]
    photos[:3, 6:] = -1
    known = (rng.random(photos.shape) < 0.3) & (photos >= 0)
    return Held(photos, known, inputs.astype(np.float32), logits.astype(np.float32), labels, blocks)


def test_the_sum_is_that_of_clipped_updates_one_by_one(held: Held) -> None:
    change = np.random.default_rng(1).normal(0, 0.3, (2, CLASSES, held.inputs.shape[1]))
    total, norms = np.zeros_like(change), []
    for photos, known in zip(held.photos, held.known, strict=True):
        update = np.zeros_like(change)
        for photo, told in zip(photos[photos >= 0], known[photos >= 0], strict=True):
            read, block = held.inputs[photo], held.blocks[photo]
            answer = softmax((held.logits[photo] + change[block] @ read)[None])[0]
            target = np.eye(CLASSES)[held.labels[photo]] if told else softmax(held.logits[photo][None])[0]
            update[block] += (1 if told else DESCENT.agreed) * np.outer(target - answer, read)
        norms.append(np.linalg.norm(update))
        total += update * min(1, DESCENT.clip / norms[-1])
    assert min(norms) < DESCENT.clip < max(norms)
    np.testing.assert_allclose(sum_of_updates(held, change, DESCENT), total, atol=1e-4)


def accuracy(held: Held, change: Floats) -> float:
    found = answers(held.logits, held.inputs, held.blocks, change)
    return float((found.argmax(1) == held.labels).mean())


def test_what_is_told_is_learned_and_noise_undoes_it(held: Held) -> None:
    told = replace(held, known=held.photos >= 0)
    found = train(told, DESCENT, np.random.default_rng(0))
    before, after = accuracy(held, np.zeros_like(found.change)), accuracy(held, found.change)
    assert after > before + 0.1
    noisy = train(told, replace(DESCENT, multiplier=20.0), np.random.default_rng(0))
    assert accuracy(held, noisy.change) < after
    assert noisy.noise == pytest.approx(20 * 0.6 * np.sqrt(noisy.change.size) / 7)
    assert found.noise == 0


def test_where_nothing_is_known_nothing_changes(held: Held) -> None:
    silent = replace(held, known=np.zeros_like(held.known))
    assert np.abs(train(silent, DESCENT, np.random.default_rng(0)).change).max() < 1e-6


def test_rows_of_natural_owners_have_no_number_of_phones() -> None:
    keys = Corrections(worlds="owners,clean", phones="1000,10000").row_keys()
    assert len(keys) == (1 + 2) * len(PARTS) * len(KNOWN) * 2
    assert {key["phones"] for key in keys if key["world"] == "owners"} == {0}


@pytest.mark.parametrize(
    ("given", "says"),
    [({"worlds": "moon"}, "world 'moon'"), ({"parts": "all"}, "part 'all'"), ({"epsilon": "-1"}, "epsilon is '-1'")],
)
def test_what_is_unknown_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Corrections(**given)


def test_the_section_shows_gains_over_the_shipped_layer() -> None:
    key = {"world": "clean", "images": 30, "phones": 10000, "part": "biases", "known": "corrections"}
    figures = {"shipped_all": 0.9, "shipped_own": 0.95, "known_labels": 800, "values_trained": 10, "signal": 0.02}
    rows = [
        {
            **key,
            "epsilon": epsilon,
            "seed": seed,
            **figures,
            "noise": epsilon / 1000,
            "all": 0.91 + epsilon / 1000,
            "own": 0.945,
        }
        for seed in (0, 1)
        for epsilon in (8.0, 0.0)
    ]
    settings = {"corrected": 0.03, "rounds": 8, "agreed": 0.03, "clip": 1.0}
    text = PAGES["corrections"](Record("corrections", settings, MACHINE, [], rows)).text
    assert "### clean: 10,000 phones of 30 photos" in text
    assert (
        "| of the layer | values | noise | corrections, ε = 8 | corrections, no noise | all labels known, ε = 8 |"
        in text
    )
    assert "| its biases | 10 | 0.4 ± 0.0 | +1.8 ± 0.0 / −0.5 ± 0.0 | +1.0 ± 0.0 / −0.5 ± 0.0 | – / – | – / – |" in text
