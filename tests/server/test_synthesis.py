"""Synthetic images: the network takes them for its classes, and they do for pruning what photos would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedcaptor.common.arrays import Images
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import load_config
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.prune import Budget, prune
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.planning import Reference
from fedcaptor.server.start import open_run
from fedcaptor.server.synthesis import synthesise
from fedcaptor.simulations.local_grid import LocalGrid
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
EACH, STEPS = 10, 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny.base_model(tiny.write(tmp_path_factory.mktemp("tiny"))[1])


def test_the_network_takes_them_for_their_labels_and_its_batch_norms_for_training_images(base: BaseModel) -> None:
    told: list[tuple[int, int]] = []
    start, _ = synthesise(base, EACH, 1, seed=1)
    x, y = synthesise(base, EACH, STEPS, seed=1, on_step=lambda *done: told.append(done))
    assert np.bincount(y).tolist() == [EACH] * tiny.CLASSES
    assert (base.scores(x).argmax(1) == y).mean() > 0.95
    assert np.linalg.norm(moments_on(base, x)) < 0.2 * np.linalg.norm(moments_on(base, start))
    assert told == [(step, STEPS) for step in range(1, STEPS + 1)]
    np.testing.assert_array_equal(x[:5], synthesise(base, EACH, STEPS, seed=1)[0][:5])


def test_what_is_pruned_with_them_knows_photos_nearly_as_well_as_what_is_pruned_with_photos(base: BaseModel) -> None:
    test, truth = tiny.images(1000, 7)

    def accuracy(x: Images) -> float:
        submodel = prune(base, np.arange(tiny.CLASSES), x, Budget(0.3, 2))
        return float((submodel.predict(test) == truth).mean())

    photos, _ = tiny.images(EACH * tiny.CLASSES, 8)
    found = accuracy(synthesise(base, EACH, STEPS)[0])
    assert accuracy(np.full_like(photos, 100)) + 0.02 < found
    assert accuracy(photos) - 0.02 <= found


def test_a_file_says_that_its_images_are_synthetic_and_all_of_them_are_the_server_s(tmp_path: Path) -> None:
    x, y = tiny.images(40, 0)
    np.savez_compressed(tmp_path / "made.npz", x=x, y=y, synthetic=np.True_)
    data = load(str(tmp_path / "made.npz"))
    reference = Reference.of(data)
    assert reference.synthetic
    assert len(reference.y) == 40
    photos = Reference.of(Dataset("photos", x, y, data.names))
    assert not photos.synthetic
    assert len(photos.y) < 40


def test_a_run_with_them_fits_no_calibration_and_learns_no_looks(tmp_path: Path, base: BaseModel) -> None:
    reference = replace(Reference(*tiny.images(60, 0)), synthetic=True)

    def calibrations(*overrides: str, given: Reference = reference) -> list[Calibration]:
        config = load_config(None, ["privacy.min_cohort=20", *overrides])
        grid = LocalGrid(lambda message, context: message, 40)
        with open_run(config, base, given, grid, digest="0" * 64, state="sqlite://", pictures=tmp_path) as flow:
            return flow.calibrations

    (found,) = calibrations()
    assert (found.temperature, found.bias.any()) == (1.0, False)
    (of_photos,) = calibrations(given=replace(reference, synthetic=False))
    assert of_photos.temperature != 1.0
    with pytest.raises(ConfigError, match="the server's images are synthetic"):
        calibrations("domain.enabled=true")
