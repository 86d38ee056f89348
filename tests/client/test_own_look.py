"""A phone measures how its photos look, keeps what is published, and can adapt to its own look alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcaptor.client import own_look
from fedcaptor.client.folder import ADAPTATION_FILE, LOOK_FILE
from fedcaptor.client.torch_engine import TorchEngine, load_base
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.data.source import load
from fedcaptor.common.look import look_of
from fedcaptor.simulations.looks import corrupted
from fedcaptor.simulations.runner import SHIPPED

DATA = load("embedded")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(load_base(SHIPPED, "small-cnn", (1, 28, 28)))


def photos(count: int, *corruptions: str, start: int = 0) -> np.ndarray:
    return corrupted(DATA.x[start : start + count], corruptions, np.random.default_rng(0))


def test_a_day_is_measured_once_and_read_again(engine: TorchEngine, tmp_path: Path) -> None:
    assert own_look.day_of(tmp_path) == -1
    assert own_look.measure(tmp_path, engine, photos(1), 3) is None
    assert own_look.due(tmp_path, 3, moments=False)
    found = own_look.measure(tmp_path, engine, photos(20), 3)
    assert found is not None
    assert found.moments is None
    assert [own_look.due(tmp_path, *asked) for asked in ((3, False), (3, True), (4, False))] == [False, True, True]
    found = own_look.measure(tmp_path, engine, photos(20), 3, moments=True)
    assert found is not None
    assert not own_look.due(tmp_path, 3, moments=True)
    for kept, measured in zip(own_look.read(tmp_path) or (), found, strict=True):
        assert measured is not None
        np.testing.assert_array_equal(kept, measured)
    (tmp_path / LOOK_FILE).write_bytes(b"half")
    assert (own_look.read(tmp_path), own_look.day_of(tmp_path)) == (None, -1)


def test_the_nearest_published_look_moves_the_model_of_these_weights(engine: TorchEngine, tmp_path: Path) -> None:
    own = own_look.measure(tmp_path, engine, photos(40, "blur=1"), 1, moments=True)
    assert own is not None
    assert own.moments is not None
    source = look_of(DATA.x[:200])
    moments = np.stack([np.zeros(len(own.moments)), own.moments / 2]).astype(np.float32)
    adaptation = Adaptation(np.stack([source, own.look + 0.1]).astype(np.float32), source.astype(np.float32), moments)
    assert own_look.adapted_engine(tmp_path, engine) is engine
    own_look.keep_adaptation(tmp_path, adaptation, engine.weights_digest)
    adapted = own_look.adapted_engine(tmp_path, engine)
    assert adapted.weights_digest == engine.weights_digest
    assert not np.array_equal(adapted.scores(photos(5)), engine.scores(photos(5)))
    assert own_look.adapted_engine(tmp_path, engine) is adapted
    own_look.measure(tmp_path, engine, photos(40), 2)
    assert own_look.adapted_engine(tmp_path, engine) is engine  # photos are sharp again
    own_look.keep_adaptation(tmp_path, adaptation, "f" * 64)
    assert own_look.adaptation_of(tmp_path, engine) is None


@pytest.mark.slow
def test_a_phone_adapts_alone_where_labelled_images_say_that_it_helps(engine: TorchEngine, tmp_path: Path) -> None:
    reference, labels = DATA.x[1000:1150], DATA.y[1000:1150]
    own_look.measure(tmp_path, engine, photos(60), 1)
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is None
    own_look.measure(tmp_path, engine, photos(60, "blur=1.2"), 2)
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is not None
    later, truth = photos(400, "blur=1.2", start=4000), DATA.y[4000:4400]
    right = [(each.predict(later) == truth).mean() for each in (engine, own_look.adapted_engine(tmp_path, engine))]
    assert right[1] > right[0] + 0.1
    own_look.measure(tmp_path, engine, photos(60), 3)
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is None
    assert not (tmp_path / ADAPTATION_FILE).exists()


@pytest.mark.slow
def test_photos_that_are_not_far_off_are_adapted_to_where_that_surely_helps(
    engine: TorchEngine, tmp_path: Path
) -> None:
    """Grey noise of a tenth moves a look less than a few photos of a few classes may, and costs twenty points."""
    reference, labels = DATA.x[1000:1150], DATA.y[1000:1150]
    own_look.measure(tmp_path, engine, photos(60, "noise=0.1"), 1)
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is not None
    later, truth = photos(400, "noise=0.1", start=4000), DATA.y[4000:4400]
    right = [(each.predict(later) == truth).mean() for each in (engine, own_look.adapted_engine(tmp_path, engine))]
    assert right[1] > right[0] + 0.1
    rng = np.random.default_rng(0)
    assert own_look.adapted_alone(tmp_path, engine, reference, rng.permutation(labels)) is None


def test_a_handful_of_photos_must_look_farther_off_than_many(
    engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, labels, trousers = DATA.x[1000:1150], DATA.y[1000:1150], DATA.x[DATA.y == 1][:3]
    own_look.measure(tmp_path, engine, trousers, 1)
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is None
    monkeypatch.setattr(own_look, "_MANY", 3)  # as if three were many
    assert own_look.adapted_alone(tmp_path, engine, reference, labels) is not None
