"""Every strategy holds its budget and cuts physically; only those that should look at the classes do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.strategies import SEE_ALL_CLASSES, STRATEGIES, Task, prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

NEEDED = np.array([1, 7])


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))


@pytest.fixture(scope="module")
def task(base) -> Task:
    data = load("embedded")
    reference = split(data)["reference"]

    def some(classes):
        return data.x[np.concatenate([reference[data.y[reference] == c][:6] for c in classes])]

    return Task(base, NEEDED, some(NEEDED), some(range(10)), seed=3)


def layers(submodel: Submodel) -> dict[str, tuple[int, ...]]:
    return {group: tuple(index.tolist()) for group, index in submodel.plan.kept.items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_budget_holds_and_the_network_is_smaller(name, task):
    given = task if name in SEE_ALL_CLASSES else dataclasses.replace(task, all_images=task.images[:0])
    prepared = prepare(name, given)
    sizes = []
    for macs in (0.5, 0.2):
        submodel = prepared.submodel(Budget(macs))
        shapes = {key: tuple(tensor.shape) for key, tensor in submodel.module.state_dict().items()}
        assert 0.8 * macs < submodel.macs_ratio <= macs
        assert shapes == task.base.groups.shapes(submodel.plan.counts())
        assert set(submodel.predict(task.images)) <= set(NEEDED)
        sizes.append(sum(tensor.numel() for tensor in submodel.module.state_dict().values()))
    assert sizes[1] < sizes[0] < sum(tensor.numel() for tensor in task.base.module.state_dict().values())


@pytest.mark.parametrize("name", ["captor", "taylor", "l1", "random"])
def test_cut_strategies_leave_the_weights_that_stay(name, task):
    submodel = prepare(name, task).submodel(Budget(0.5))
    kept = submodel.plan.kept
    first, second = task.base.groups.groups[:2]
    expected = task.base.state["features.4.weight"][np.ix_(kept[second.name], kept[first.name])]
    np.testing.assert_array_equal(submodel.module.state_dict()["features.4.weight"].numpy(), expected)


def test_random_is_seeded(task):
    one, same, other = (
        layers(prepare("random", dataclasses.replace(task, seed=seed)).submodel(Budget(0.4))) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@pytest.mark.parametrize(("name", "looks"), [("reconstruct-agnostic", False), ("l1", False), ("captor", True)])
def test_only_class_adaptive_strategies_depend_on_the_needed_classes(name, looks, task):
    one, other = (
        prepare(name, dataclasses.replace(task, classes=np.array(classes))).submodel(Budget(0.4)).plan.kept
        for classes in ([1, 7], [2, 6])
    )
    output = task.base.groups.output.name
    assert one[output].tolist() == [1, 7]
    assert other[output].tolist() == [2, 6]
    same = all(np.array_equal(one[group], other[group]) for group in one.keys() - {output})
    assert same != looks


def test_the_agnostic_control_does_not_see_the_needed_classes_images(task):
    blind = dataclasses.replace(task, images=task.images[:0])
    one, other = (prepare("reconstruct-agnostic", t).submodel(Budget(0.3)) for t in (task, blind))
    np.testing.assert_array_equal(one.scores(task.images), other.scores(task.images))


def test_merging_agrees_with_the_full_model_more_than_cutting(task):
    x = normalise(task.images, task.base.mean, task.base.std)
    full = NEEDED[logits(task.base.module, x)[:, NEEDED].argmax(1)]
    merged, cut = (prepare(name, task).submodel(Budget(0.3)).predict(task.images) for name in ("reconstruct", "random"))
    assert (merged == full).mean() > (cut == full).mean()


def test_an_unknown_strategy_and_missing_images_are_named(task):
    with pytest.raises(ConfigError, match=r"'magic', must be one of reconstruct, .*random"):
        prepare("magic", task)
    empty = dataclasses.replace(task, images=task.images[:0], all_images=task.images[:0])
    for name in ("reconstruct", "reconstruct-agnostic", "captor", "taylor"):
        with pytest.raises(DataError, match="0 calibration images"):
            prepare(name, empty)
