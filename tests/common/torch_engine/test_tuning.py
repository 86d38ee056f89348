"""Tuning makes a cut network agree again, never goes farther away, and touches nothing that it was given."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch

from fedcaptor.common.errors import DataError
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import kept_elements
from fedcaptor.common.torch_engine import teacher, tuning
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.teacher import Teacher, inputs_of, shifted
from fedcaptor.common.torch_engine.tuning import _batches, _Score, judge, tune
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

NEEDED = np.array([0, 1, 4])


@pytest.fixture
def submodel(bars) -> Submodel:
    """Three quarters of the channels are cut: it answers badly."""
    base = tiny.base_model(bars[1])
    kept = {group.name: np.arange(0, group.channels, 4) for group in base.groups.prunable}
    return sliced(base, Plan.of(base.groups, kept | {base.groups.output.name: NEEDED}))


def pictures(count: int, seed: int) -> np.ndarray:
    x, y = tiny.images(count * 3, seed)
    return x[np.isin(y, NEEDED)][:count]


def agreement(submodel: Submodel, images: np.ndarray) -> float:
    base = submodel.base
    full = logits(base.module, normalise(images, base.mean, base.std))[:, NEEDED].argmax(1)
    return float((submodel.predict(images) == NEEDED[full]).mean())


def test_it_learns_and_leaves_what_it_was_given(submodel):
    images, held = pictures(300, 1), pictures(150, 2)
    kept = [
        (tensor, tensor.clone())
        for module in (submodel.module, submodel.base.module)
        for tensor in module.state_dict().values()
    ]
    seen: list[int] = []
    found = tune(submodel, images, held, steps=60, rate=3e-3, augment=False, on_step=seen.append)
    assert found.before == agreement(submodel, held)
    assert found.after == agreement(found.submodel, held)
    assert found.after > found.before + 0.1
    assert agreement(found.submodel, pictures(200, 3)) > agreement(submodel, pictures(200, 3)) + 0.1
    assert seen == list(range(1, found.steps + 1))
    assert all(torch.equal(now, before) for now, before in kept)
    assert not any(p.requires_grad for module in (found.submodel.module, submodel.module) for p in module.parameters())
    assert not any(module.training for module in found.submodel.module.modules())


def test_it_never_ends_worse(submodel):
    held = pictures(100, 2)
    good = tune(submodel, pictures(300, 1), held, steps=40, rate=3e-3).submodel
    found = tune(good, pictures(300, 1), held, steps=20, rate=50.0)  # a rate that destroys the network
    assert found.before == found.after == agreement(good, held)
    for key, tensor in good.module.state_dict().items():
        assert torch.equal(tensor, found.submodel.module.state_dict()[key])


def test_the_same_seed_gives_the_same_network(submodel):
    one, same, other = (
        tune(submodel, pictures(60, 1), pictures(30, 2), steps=5, rate=3e-3, seed=seed).submodel.module[0].weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_time_ends_it(submodel):
    now = iter(range(1000))
    found = tune(submodel, pictures(60, 1), pictures(30, 2), steps=500, seconds=7.0, clock=lambda: float(next(now)))
    assert found.steps == 7


def test_it_stops_after_four_checks_without_a_better_one_and_keeps_the_best(submodel, monkeypatch):
    # The start, then every tenth step. The third is the nearest; that it agrees less often does not count.
    checks = [(0.2, 2.0), (0.1, 2.1), (0.3, 1.5), (0.1, 1.4), (0.9, 1.6), (0.9, 1.5), (0.9, 1.45), (0.9, 1.5), (1.0, 1)]
    weights = []

    def validate(module):
        weights.append(module.state_dict()["0.weight"].clone())
        return _Score(*checks[len(weights) - 1])

    monkeypatch.setattr(tuning, "_Validation", lambda *_: validate)
    found = tune(submodel, pictures(60, 1), pictures(30, 2), steps=80)
    assert (found.before, found.after, found.steps) == (0.2, 0.1, 70)
    assert torch.equal(found.submodel.module[0].weight, weights[3])


@pytest.mark.parametrize(("agreement", "many", "fixed"), [(0.95, 60, True), (0.9, 60, False), (0.9, 61, True)])
def test_near_the_full_model_or_of_few_images_statistics_stay(submodel, monkeypatch, agreement, many, fixed):
    monkeypatch.setattr(tuning, "MANY", many)
    checks = iter([1.0, 0.5])
    monkeypatch.setattr(tuning._Validation, "__call__", lambda self, module: _Score(agreement, next(checks, 0.9)))
    found = tune(submodel, pictures(60, 1), pictures(30, 2), steps=8).submodel.module
    assert torch.equal(found[1].running_mean, submodel.module[1].running_mean) == fixed
    assert not torch.equal(found[1].weight, submodel.module[1].weight)
    assert not any(module.training for module in found.modules())


def test_a_judgement_asks_for_more_than_chance(submodel):
    better = tune(submodel, pictures(300, 1), pictures(100, 2), steps=60, rate=3e-3, augment=False).submodel
    many, few = judge(submodel, better, pictures(100, 7)), judge(submodel, better, pictures(2, 7))
    assert many.helped
    assert many.before == agreement(submodel, pictures(100, 7))
    assert many.after == agreement(better, pictures(100, 7)) > many.before
    assert not few.helped
    assert not judge(better, submodel, pictures(100, 7)).helped
    assert not judge(submodel, submodel, pictures(100, 7)).helped
    with pytest.raises(DataError, match="1 images to judge on"):
        judge(submodel, better, pictures(1, 7))


def test_no_steps_change_nothing(submodel):
    found = tune(submodel, pictures(10, 1), pictures(10, 2), steps=0)
    assert (found.steps, found.before) == (0, found.after)


def test_one_target_class_leaves_nothing_to_learn(bars):
    base = tiny.base_model(bars[1])
    only = sliced(base, Plan.of(base.groups, {base.groups.output.name: [2]}))
    assert tune(only, pictures(20, 1), pictures(10, 2), steps=3).after == 1.0


@pytest.mark.parametrize(("count", "held"), [(1, 5), (5, 0)])
def test_too_few_images_are_named(submodel, count, held):
    with pytest.raises(DataError, match=f"{count} images to tune on and {held} held out"):
        tune(submodel, pictures(count, 1), pictures(held, 2))


@pytest.mark.parametrize(("count", "batch"), [(2, 1), (3, 64), (5, 2), (100, 64), (130, 64)])
def test_a_pass_sees_every_example_once_in_batches_of_at_least_two(count, batch):
    stream, seen = _batches(count, batch, np.random.default_rng(0)), []
    while len(seen) < count:
        part = next(stream)
        assert 2 <= len(part) <= max(batch, 3)
        seen += part.tolist()
    assert sorted(seen) == list(range(count))


def test_images_are_mirrored_then_moved():
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]]).repeat(3, 1, 1, 1)
    found = shifted(x, np.array([[0, 0], [1, -1], [0, 1]]), np.array([False, False, True]))
    expected = [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [2, 3, 0]], [[0, 3, 2], [0, 6, 5]]]
    assert found[:, 0].tolist() == expected


@pytest.fixture
def three_views(monkeypatch):
    monkeypatch.setattr(teacher, "VIEWS_PER_IMAGE", 3)


@pytest.mark.usefixtures("three_views")
def test_the_full_model_answers_each_view_that_is_learnt_and_shows_its_channels(submodel, monkeypatch):
    monkeypatch.setattr(teacher, "half_precision", contextlib.nullcontext)
    images, rng = pictures(5, 1), np.random.default_rng(0)
    taught = Teacher(submodel, images, True, rng)
    base, parts = submodel.base, np.arange(15).reshape(3, 5)
    kept = kept_elements(base.groups, submodel.plan)
    for part in np.tile(parts, (10, 1)):
        x, answers, channels = taught.examples(part)
        with inputs_of(base.module, taught.layers) as seen:
            torch.testing.assert_close(answers, base.module(x)[:, NEEDED])
        assert channels.keys() == seen.keys()
        for layer, values in channels.items():
            expected = seen[layer][:, kept[f"{layer}.weight", 1]]
            torch.testing.assert_close(values, expected, rtol=2**-8, atol=1e-6)  # bfloat16
    assert taught.layers
    assert len(taught) == 15
    assert len(np.unique(taught.mirrored)) == 2
    assert taught.moves.any()
    assert (np.abs(taught.moves) <= tiny.SIDE // 8).all()
    assert not taught.answers.isnan().any()


def test_without_augmentation_every_image_is_itself_and_stays(submodel):
    images, everyone = pictures(5, 1), np.arange(5)
    alone = Teacher(submodel, images, False, np.random.default_rng(0))
    assert sorted(alone.shown) == list(everyone)
    first, answers, _ = alone.examples(everyone)
    torch.testing.assert_close(first, normalise(images[alone.shown], submodel.base.mean, submodel.base.std))
    assert not answers.isnan().any()
    for _ in range(10):
        torch.testing.assert_close(alone.examples(everyone)[0], first)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_batches_shows_new_views_of_any_image(submodel, monkeypatch, share):
    monkeypatch.setattr(teacher, "RENEWED", share)
    monkeypatch.setattr(teacher, "VIEWS", 7)
    images, part = pictures(400, 1), np.arange(7)
    taught = Teacher(submodel, images, True, np.random.default_rng(0))
    taught.examples(part)
    others = []
    for _ in range(400):
        shown, answers = taught.shown.copy(), taught.answers.clone()
        taught.examples(part)
        other = taught.shown != shown
        assert ((taught.answers != answers).any(1).numpy() >= other).all()
        others.append(other.mean())
    assert np.mean(others) == pytest.approx(share, abs=0.06)


def test_in_half_precision_answers_are_near_and_what_is_learnt_is_single(submodel, monkeypatch):
    half = functools.partial(torch.autocast, "cpu", torch.bfloat16)  # also where the processor has no such unit
    monkeypatch.setattr(teacher, "half_precision", half)
    monkeypatch.setattr(tuning, "half_precision", half)
    images, part = pictures(40, 1), np.arange(40)
    x, answers, _ = Teacher(submodel, images, True, np.random.default_rng(0)).examples(part)
    exact = submodel.base.module(x)[:, NEEDED]
    assert answers.dtype == torch.float32
    assert 0 < float((answers - exact).abs().max()) < 0.05 * float(exact.abs().max())
    found = tune(submodel, images, images, steps=16)
    assert found.after >= found.before
    assert {value.dtype for value in found.submodel.module.parameters()} == {torch.float32}
    assert found.submodel.scores(images[:2]).dtype == np.float32


@pytest.mark.parametrize(("agreement", "rate"), [(1.0, 4e-5), (0.98, 1e-4), (0.9, 4e-4)])
def test_the_nearer_the_start_the_smaller_the_steps(submodel, monkeypatch, agreement, rate):
    monkeypatch.setattr(tuning._Validation, "__call__", lambda self, module: _Score(agreement, 0.5))
    assert tune(submodel, pictures(9, 1), pictures(9, 1), steps=1).rate == pytest.approx(rate)
    assert tune(submodel, pictures(9, 1), pictures(9, 1), steps=1, rate=1e-3).rate == 1e-3


def test_of_many_images_some_are_taught_and_of_large_maps_none(submodel, monkeypatch):
    monkeypatch.setattr(teacher, "VIEWS", 7)
    images = pictures(20, 1)
    many = Teacher(submodel, images, True, np.random.default_rng(0))
    assert many.answers.shape == (7, len(NEEDED))
    assert len(set(many.shown)) == 7
    last = many.layers[0]
    monkeypatch.setattr(teacher, "VALUES", len(many._kept[last]))
    assert Teacher(submodel, images, True, np.random.default_rng(0)).layers == [last]
    monkeypatch.setattr(teacher, "VALUES", 0)
    assert Teacher(submodel, images, True, np.random.default_rng(0)).layers == []
    assert tune(submodel, images, images, steps=2).steps == 2


def test_of_weights_about_the_mean_of_the_last_fifth_is_kept():
    mean = torch.zeros(1)
    for step in range(1000):
        mean = tuning._averaged(mean, torch.full((1,), float(step)), step)
    assert float(mean) == pytest.approx(5 / 6 * 1000, rel=0.01)
