"""Pruning a network in memory: the same submodel as by files, from images of every form, the network left alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedcaptor
from fedcaptor import _evidence, _measured_budgets, _verification
from fedcaptor.common.planner import Budget
from fedcaptor.common.timing import LatencyRatio
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.prune import prune as prune_base
from fedcaptor.common.torch_engine.tuning import Judgement
from tests import tiny

STATISTICS = {"mean": 0.3, "std": 0.25}
CLASSES = [1, 4]
X, Y = tiny.images(400, seed=5)
NEEDED = X[np.isin(Y, CLASSES)][:60]


def scores_of(submodel: fedcaptor.Submodel) -> np.ndarray:
    return submodel.scores(X[:20])


def kept_of(submodel: fedcaptor.Submodel) -> dict[str, list[int]]:
    return {name: kept.tolist() for name, kept in submodel.kept.items()}


@pytest.mark.slow
def test_a_network_in_memory_gives_what_its_file_gives(network: nn.Module, bars: tuple[Path, Path]) -> None:
    small = fedcaptor.prune(network, NEEDED, CLASSES, macs=0.5, multiple=2, **STATISTICS)
    expected = prune_base(tiny.base_model(bars[1]), np.array(CLASSES), NEEDED, Budget(0.5, multiple=2))
    assert kept_of(small) == {name: kept.tolist() for name, kept in expected.plan.kept.items()}
    np.testing.assert_allclose(scores_of(small), expected.scores(X[:20]), atol=1e-4)
    assert (small.macs_ratio, small.parameters_ratio) == (expected.macs_ratio, expected.parameters_ratio)
    assert isinstance(small.macs_ratio, float)
    assert 0 < small.macs_ratio <= 0.5
    assert small.classes.tolist() == CLASSES
    test = np.isin(Y, CLASSES)
    assert (small.predict(X[test]) == Y[test]).mean() > 0.8
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in network.parameters())


def test_the_network_stays_as_it_is(network: nn.Module) -> None:
    mine = copy.deepcopy(network).requires_grad_(True).train()
    mine[3].weight.requires_grad_(False)
    mine[0].weight.grad = torch.ones_like(mine[0].weight)
    before, gradient = copy.deepcopy(mine), mine[0].weight.grad.clone()
    small = fedcaptor.prune(mine, NEEDED, CLASSES, macs=0.5, multiple=2, tune=2, recalibrate=True, **STATISTICS)
    for (name, now), then in zip(mine.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(now, then), name
    assert all(module.training for module in mine.modules())
    assert [p.requires_grad for p in mine.parameters()] == [p.requires_grad for p in before.parameters()]
    assert torch.equal(mine[0].weight.grad, gradient)
    expected = scores_of(small)
    with torch.no_grad():
        mine[0].weight.zero_()  # nothing is shared
    np.testing.assert_allclose(scores_of(small), expected, atol=1e-4)


def test_images_of_every_form_say_the_same(network: nn.Module) -> None:
    pixels = torch.from_numpy(NEEDED).permute(0, 3, 1, 2)
    normalised = normalise(NEEDED, (0.3,), (0.25,))
    options = {"macs": 0.5, "multiple": 2}
    expected = fedcaptor.prune(network, NEEDED, CLASSES, **options, **STATISTICS)
    given = {
        "grey array": (NEEDED[..., 0], STATISTICS),
        "uint8 tensor": (pixels, STATISTICS),
        "floats in [0, 1]": (pixels / 255, {"mean": [0.3], "std": (0.25,)}),
        "normalised floats": (normalised, {}),
        "batches": (DataLoader(normalised, 7), {}),
    }
    for name, (images, statistics) in given.items():
        small = fedcaptor.prune(network, images, CLASSES, **options, **statistics)
        assert kept_of(small) == kept_of(expected), name
        same = torch.from_numpy(X[:20]).permute(0, 3, 1, 2) / 255 if statistics else normalise(X[:20], (0.3,), (0.25,))
        np.testing.assert_allclose(small.scores(same), scores_of(expected), atol=1e-3, err_msg=name)
        np.testing.assert_array_equal(small.predict(DataLoader(same, 6)), small.predict(same))


def test_labels_of_batches_choose_the_needed_classes(network: nn.Module) -> None:
    x, y = torch.from_numpy(X).permute(0, 3, 1, 2), torch.from_numpy(Y)
    in_order = torch.argsort(y, stable=True)  # batches of one class each: none may be missed
    loader = DataLoader(TensorDataset(x[in_order], y[in_order]), 16)
    small = fedcaptor.prune(network, loader, CLASSES, macs=0.5, multiple=2, calibration=400, **STATISTICS)
    sorted_images = X[in_order][np.isin(Y[in_order], CLASSES)]
    alone = fedcaptor.prune(network, sorted_images, CLASSES, macs=0.5, multiple=2, calibration=400, **STATISTICS)
    assert kept_of(small) == kept_of(alone)
    np.testing.assert_allclose(scores_of(small), scores_of(alone), atol=1e-4)
    with pytest.raises(fedcaptor.DataError, match="no image of class 5"):
        fedcaptor.prune(network, DataLoader(TensorDataset(x[y < 5], y[y < 5]), 16), [1, 5], macs=0.5, **STATISTICS)


def test_batches_are_sampled_evenly_and_by_seed(network: nn.Module) -> None:
    loader = DataLoader(torch.arange(4000.0).reshape(-1, 1, 1, 1).expand(-1, 1, 12, 12) / 4000, 100)
    found = [fedcaptor.Evidence(network, loader, [0], calibration=100, seed=s, **STATISTICS) for s in (0, 0, 1)]
    drawn = [np.sort(one._images[:, 0, 0, 0]) for one in found]
    assert len(drawn[0]) == 600  # 100 to observe, 500 to hold out
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert abs((drawn[0] * 0.25 + 0.3).mean() - 0.5) < 0.06  # five deviations of a mean of 600


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (NEEDED.astype(np.float32), {}, "array of float32, must be uint8"),
        (NEEDED[0, 0], STATISTICS, "must be \\[N, H, W, C\\] or \\[N, H, W\\]"),
        (torch.zeros(3, 12, 12), {}, "float tensors must be \\[N, C, H, W\\]"),
        (torch.full((3, 1, 12, 12), 2.0), STATISTICS, "from 2 to 2, must lie in \\[0, 1\\]"),
        (NEEDED[:0], STATISTICS, "0 images are given"),
        ([], {}, "hold no image"),
        (3, {}, "images are a int, must be"),
        ([{"x": 1}], {}, "a batch is a dict of something else than tensors"),
        ([(torch.zeros(2, 1, 12, 12), torch.zeros(2, 5))], {}, "labels of 2 images have shape \\[2, 5\\]"),
        ([torch.zeros(2, 1, 12, 12), (torch.zeros(2, 1, 12, 12), torch.ones(2).int())], {}, "others have none"),
    ],
)
def test_images_that_do_not_fit_are_named(network: nn.Module, images: object, options: dict, message: str) -> None:
    with pytest.raises(fedcaptor.DataError, match=message):
        fedcaptor.prune(network, images, CLASSES, macs=0.5, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": 0.5}, "give both"),
        ({"mean": [0.5, 0.5], "std": 0.5}, "mean has 2 values, the images have 1 channels"),
        ({"mean": 0.5, "std": 0}, "must be finite and above 0"),
        ({**STATISTICS, "classes": [1, 9]}, "classes are 1,9, labels of this model lie in 0..5"),
        ({**STATISTICS, "classes": []}, "classes are none"),
        ({**STATISTICS, "strategy": "magic"}, "strategy is 'magic', must be one of reconstruct"),
        ({**STATISTICS, "calibration": 0}, "calibration is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(network: nn.Module, options: dict, message: str) -> None:
    with pytest.raises(fedcaptor.ConfigError, match=message):
        fedcaptor.prune(network, NEEDED, **{"classes": CLASSES, "macs": 0.5, **options})


def test_a_normalisation_that_nobody_gave_is_told(network: nn.Module) -> None:
    with pytest.warns(UserWarning, match="mean and std are not given"):
        small = fedcaptor.prune(network, NEEDED, CLASSES, macs=0.5, multiple=2)
    given = fedcaptor.prune(network, NEEDED, CLASSES, macs=0.5, multiple=2, mean=0.5, std=0.5)
    np.testing.assert_allclose(scores_of(small), scores_of(given), atol=1e-4)
    floats = fedcaptor.prune(network, normalise(NEEDED, (0.3,), (0.25,)), CLASSES, macs=0.5, multiple=2)
    with pytest.raises(fedcaptor.DataError, match="the network was given normalised floats"):
        floats.predict(NEEDED)


@pytest.mark.slow
def test_all_budgets_hold(network: nn.Module, tmp_path: Path) -> None:
    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS)
    large, small = (evidence.submodel(macs=macs, multiple=2) for macs in (0.8, 0.3))
    assert small.macs_ratio <= 0.3 < large.macs_ratio <= 0.8
    assert small.macs < large.macs
    assert evidence.submodel(parameters=0.4, multiple=2).parameters_ratio <= 0.4
    held = evidence.submodel(bytes=3000, multiple=2)
    file = held.save(tmp_path / "a.safetensors")
    assert file.stat().st_size <= 3000
    with pytest.raises(fedcaptor.PlanError, match=r"bytes budget is 3000, the \.pt2 file has \d+, \d+ more: plan for"):
        held.save(tmp_path / "a.pt2")
    assert not (tmp_path / "a.pt2").exists()
    with pytest.raises(fedcaptor.PlanError, match="the budget is empty"):
        evidence.submodel()
    with pytest.raises(fedcaptor.PlanError, match="MACs budget is 2"):
        evidence.submodel(macs=2)


def test_an_impossible_budget_is_refused_before_images_are_observed(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS)
    monkeypatch.setattr(evidence, "strategy", lambda task: pytest.fail("observed"))
    with pytest.raises(fedcaptor.PlanError, match="is the nearest possible"):
        evidence.submodel(macs=1e-6)


def test_evidence_is_gathered_once(network: nn.Module) -> None:
    asked = []

    def strategy(task: fedcaptor.Task) -> fedcaptor.PreparedStrategy:
        asked.append(task.seed)
        return fedcaptor.PreparedStrategy.by_scores(
            task, {g.name: np.arange(g.channels) for g in task.base.groups.prunable}
        )

    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, strategy=strategy, seed=3, **STATISTICS)
    ladder = [evidence.submodel(macs=macs, multiple=2) for macs in (0.5, 0.3)]
    assert asked == [3]
    assert ladder[1].kept["0"].tolist() == list(range(8))[-len(ladder[1].kept["0"]) :]


def test_a_latency_table_is_measured_once_and_kept(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ratio(small: nn.Module, full: nn.Module, shape: object) -> LatencyRatio:
        share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in full.parameters())
        return LatencyRatio(share, share, share)

    for module in (_evidence, _measured_budgets):
        monkeypatch.setattr(module, "measured_latency_ratio", ratio)
    evidence, table = fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS), tmp_path / "table.json"
    seen: list[tuple[int, int]] = []
    options = {"latency": 0.9, "multiple": 2, "latency_table": table, "on_layer": lambda *done: seen.append(done)}
    first, again = evidence.submodel(**options), evidence.submodel(**options)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert kept_of(first) == kept_of(again)
    assert first.measured.keys() == {
        "latency_ratio_predicted",
        "latency_ratio",
        "latency_ratio_low",
        "latency_ratio_high",
    }
    assert 0.7 < first.measured["latency_ratio"] <= 0.9


def test_a_tolerance_is_verified_on_images_held_out(network: nn.Module) -> None:
    small = fedcaptor.prune(network, NEEDED, CLASSES, tolerance=0.1, multiple=2, **STATISTICS)
    assert small.measured["disagreement"] <= 0.1
    assert small.measured["verifying_images"] == 15
    assert small.macs_ratio < 1
    given = X[np.isin(Y, CLASSES)][60:]
    other = fedcaptor.prune(network, NEEDED, CLASSES, tolerance=0.1, multiple=2, validation_images=given, **STATISTICS)
    assert other.measured["verifying_images"] == len(given)
    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS)
    with pytest.raises(fedcaptor.DataError, match="0 images are held out to verify the tolerance: raise hold_out"):
        evidence.submodel(tolerance=0.1)


def test_tuning_is_kept_where_images_that_it_did_not_see_say_that_it_helped(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"macs": 0.3, "multiple": 2, "strategy": "random"}
    steps: list[int] = []
    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, hold_out=0.25, strategy="random", **STATISTICS)
    tuned, plain = (evidence.submodel(macs=0.3, multiple=2, tune=tune, on_step=steps.append) for tune in (4, 0))
    assert steps == [1, 2, 3, 4]
    assert (tuned.measured["tuning_steps"], tuned.measured["judging_images"]) == (4, 10)
    assert tuned.measured["tuning_images"] == 45
    given = {"tune": 2, "validation_images": X[:50], **options, **STATISTICS}
    assert fedcaptor.prune(network, NEEDED, CLASSES, **given).measured["judging_images"] == 34
    for helped in (True, False):
        monkeypatch.setattr(_verification, "judge", lambda *_, helped=helped: Judgement(0.5, 0.6, helped))
        found = evidence.submodel(macs=0.3, multiple=2, tune=4)
        assert found.measured["tuning_kept"] == helped
        assert np.array_equal(scores_of(found), scores_of(plain)) != helped


def test_tuning_without_images_that_can_judge_it_is_refused(network: nn.Module) -> None:
    with pytest.raises(fedcaptor.DataError, match="3 images are held out to judge tuning, at least 12 are needed"):
        fedcaptor.prune(network, NEEDED[:12], CLASSES, macs=0.5, multiple=2, tune=2, **STATISTICS)


def test_a_network_that_cannot_be_cut_is_named() -> None:
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(400, 6))
    with pytest.raises(fedcaptor.ModelError, match=r"must keep all channels of 0: layer 1 \(GroupNorm\) computes over"):
        fedcaptor.prune(normed, NEEDED, CLASSES, macs=0.5, **STATISTICS)


def test_weights_that_are_no_numbers_are_named(network: nn.Module) -> None:
    broken = copy.deepcopy(network)
    name, tensor = next(iter(broken.named_parameters()))
    tensor.data.view(-1)[0] = torch.nan
    with pytest.raises(fedcaptor.ModelError, match=f"1 of {tensor.numel()} values of tensor {name} are not finite"):
        fedcaptor.prune(broken, NEEDED, CLASSES, macs=0.5, **STATISTICS)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_outside_its_bounds_is_named(network: nn.Module, seed: int) -> None:
    with pytest.raises(fedcaptor.ConfigError, match=rf"seed is {seed}, must lie in 0\.\.{2**63 - 1}"):
        fedcaptor.prune(network, NEEDED, CLASSES, macs=0.5, seed=seed, **STATISTICS)


@pytest.mark.slow
def test_bytes_hold_for_the_files_that_they_are_given_for(network: nn.Module, tmp_path: Path) -> None:
    ending = ".pt2"
    evidence = fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS)
    whole = evidence.submodel(macs=1, multiple=2).save(tmp_path / f"whole{ending}").stat().st_size
    small = evidence.submodel(bytes=whole - 1500, multiple=2, formats=[ending])
    written = small.save(tmp_path / f"small{ending}").stat().st_size
    assert whole - 3000 < written <= whole - 1500
    with pytest.raises(fedcaptor.PlanError, match=rf"budget is 900, \d+ as \{ending} is the nearest possible"):
        evidence.submodel(bytes=900, multiple=2, formats=[ending])


def test_classes_are_named(network: nn.Module, tmp_path: Path) -> None:
    names = ["top", "middle", "bottom", "left", "centre", "right"]
    small = fedcaptor.prune(
        network, NEEDED, ["centre", "Middle"], class_names=names, macs=0.5, multiple=2, **STATISTICS
    )
    assert small.classes.tolist() == CLASSES
    assert small.class_names == ("middle", "centre")
    assert "for classes middle, centre: " in repr(small)
    again = fedcaptor.load(small.save(tmp_path / "small.safetensors"), network)
    assert again.class_names == small.class_names
    with pytest.raises(fedcaptor.ConfigError, match="class 'up' is none of top, middle"):
        fedcaptor.prune(network, NEEDED, ["up"], class_names=names, macs=0.5, **STATISTICS)
    with pytest.raises(fedcaptor.ConfigError, match="class_names are 2, the network has 6 classes"):
        fedcaptor.prune(network, NEEDED, ["a"], class_names=["a", "b"], macs=0.5, **STATISTICS)


def test_floats_that_look_like_pixels_are_told(network: nn.Module) -> None:
    pixels = torch.from_numpy(NEEDED).permute(0, 3, 1, 2) / 255
    with pytest.warns(fedcaptor.NormalisationWarning, match="normalised otherwise than in training"):
        fedcaptor.prune(network, pixels, CLASSES, macs=0.5, multiple=2)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 6))
    with pytest.warns(
        fedcaptor.NormalisationWarning, match=r"float images lie in \[0, 1\] and are taken for normalised"
    ):
        fedcaptor.Evidence(plain, pixels, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fedcaptor.Evidence(network, NEEDED, CLASSES, **STATISTICS)
        fedcaptor.Evidence(plain, normalise(NEEDED, (0.3,), (0.25,)), CLASSES)


def test_what_is_printed_says_what_it_is(network: nn.Module) -> None:
    small = fedcaptor.prune(network, NEEDED, CLASSES, macs=0.5, multiple=2, name="bars", **STATISTICS)
    assert repr(small).startswith("<fedcaptor.Submodel of bars for classes [1, 4]: ")
    assert f"MACs ({small.macs_ratio:.1%})>" in repr(small)
