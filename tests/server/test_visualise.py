"""Pictures of filters: they drive their filter, name its classes, and survive an interruption bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.models import ConvNet
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.server import visualise as module
from fedcaptor.server.painting import Visualisation, activation
from fedcaptor.server.visualise import Pictures, class_preference, visualise

FAST = Visualisation(steps=3, batch=5)
FOCUS = Visualisation().focus


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def base_of(network: nn.Module, shape: tuple[int, int, int]) -> BaseModel:
    network.eval().requires_grad_(False)
    state = {key: tensor.numpy().copy() for key, tensor in network.state_dict().items()}
    mean, std = ((0.3, 0.5, 0.6)[: shape[0]], (0.3, 0.2, 0.25)[: shape[0]])
    return BaseModel("any", state, trace(network, "any", shape), mean, std, network)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    torch.manual_seed(0)
    network = ConvNet((8, "M", 12, "M", 12), 1, 10, 4)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.bias, 0, 0.3)
    return base_of(network, (1, 16, 16))


def same(a: dict[str, Pictures], b: dict[str, Pictures]) -> bool:
    return list(a) == list(b) and all(
        np.array_equal(a[n].pictures, b[n].pictures) and np.array_equal(a[n].profile, b[n].profile) for n in a
    )


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    computed: list[int] = []
    compute = module.visualise_group

    def counted(base: BaseModel, number: int, settings: Visualisation) -> Pictures:
        computed.append(number)
        return compute(base, number, settings)

    monkeypatch.setattr(module, "visualise_group", counted)
    return computed


def driven(base: BaseModel, name: str, images: np.ndarray) -> np.ndarray:
    """Activation [images, filters] of a group, as pictures climb it."""
    group, x = base.groups.by_name[name], normalise(images, base.mean, base.std)
    columns = [activation(base.module, group, x, torch.full((len(x),), f), focus=FOCUS) for f in range(group.channels)]
    return torch.stack(columns, 1).numpy()


def test_pictures_drive_their_filter_more_than_random_images(base: BaseModel) -> None:
    found = visualise(base)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 16, 16, 1), dtype=np.uint8)
    blots = np.kron(rng.integers(0, 256, (50, 4, 4, 1)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    for name, seen in found.items():
        own = driven(base, name, seen.pictures).diagonal()
        # A filter for single pixels or hard edges prefers noise of full contrast to any smooth picture.
        for images, share in ((noise, 0.6), (blots, 0.85)):
            random = driven(base, name, images)
            alive = random.max(0) > 0
            assert (own > random.mean(0))[alive].mean() > share, name
            assert np.median((own[None] > random).mean(0)[alive]) > 0.95, name


def test_shapes_progress_and_rows_that_sum_to_one(base: BaseModel) -> None:
    seen: list[tuple[int, int]] = []
    found = visualise(base, FAST, on_group=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for group in base.groups.prunable:
        assert found[group.name].pictures.shape == (group.channels, 16, 16, 1)
        assert found[group.name].pictures.dtype == np.uint8
        profile = found[group.name].profile
        assert profile.shape == (group.channels, 4)
        assert profile.dtype == np.float32
        assert (profile >= 0).all()
        np.testing.assert_allclose(profile.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("resnet20", (3, 17, 12)), ("alexnet", (3, 15, 15))])
def test_other_networks_colours_and_odd_sizes(name: str, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    base = base_of(build(name, 3, shape), shape)
    group = base.groups.prunable[0]
    found = module.visualise_group(base, 0, Visualisation(steps=2, batch=200, shift=0))
    assert found.pictures.shape == (group.channels, *shape[1:], 3)
    assert np.isfinite(found.profile).all()


def test_the_same_seed_gives_the_same_pictures_another_one_others(base: BaseModel) -> None:
    first = visualise(base, FAST)
    assert same(first, visualise(base, FAST))
    assert not same(first, visualise(base, Visualisation(steps=3, batch=5, seed=1)))


def test_nothing_is_left_in_the_network(base: BaseModel) -> None:
    x = torch.randn(2, 1, 16, 16)
    before = base.module(x)
    visualise(base, FAST)
    torch.testing.assert_close(base.module(x), before, rtol=0, atol=0)
    assert all(p.grad is None for p in base.module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.module.modules())


def colours() -> BaseModel:
    """Filters 0 to 2 look for one colour each and vote for its class; filter 3 is read by nobody."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(4)[:, :3].view(4, 3, 1, 1) * 2 - 0.5)
        network[0].bias.zero_()
        network[4].weight.copy_(torch.eye(4)[:3])
    return base_of(network, (3, 8, 8))


def test_profiles_name_the_class_that_a_filter_serves() -> None:
    base = colours()
    (seen,) = visualise(base, Visualisation(steps=15)).values()
    np.testing.assert_array_equal(seen.profile[:3].argmax(1), [0, 1, 2])
    assert (seen.profile[:3].max(1) > 0.5).all()
    np.testing.assert_allclose(seen.profile[3], 1 / 3, rtol=1e-6)
    colour = seen.pictures[:3].mean((1, 2))
    colour -= colour.mean(1, keepdims=True)  # brightness aside
    np.testing.assert_array_equal(colour.argmax(0), [0, 1, 2])  # the reddest, the greenest and the bluest


def test_profile_by_hand() -> None:
    base = colours()
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 255
    x = (np.array([1.0, 0, 0]) - base.mean) / np.array(base.std)
    a = np.maximum(base.module[0].weight.view(4, 3).numpy() @ x, 0)[:3]
    z = (a - a.mean()) / a.std(ddof=1)
    evidence = np.sqrt(np.exp(z) / np.exp(z).sum() * a[0] * np.array([2 / 3, 1 / 3, 1 / 3]))
    found = class_preference(base, base.groups.prunable[0], torch.tensor([0]), red)
    np.testing.assert_allclose(found[0], evidence / evidence.sum(), rtol=1e-4)


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = visualise(base, FAST)

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        visualise(base, FAST, tmp_path, kill, workers=1)
    stored = len(list(tmp_path.iterdir()))
    assert stored in (2, 3)  # one more may have been under way
    computed = count_computed(monkeypatch)
    assert same(visualise(base, FAST, tmp_path, workers=1), whole)
    assert computed == list(range(stored, 4))
    assert same(visualise(base, FAST, tmp_path), whole)
    assert computed == list(range(stored, 4))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def malformed(path: Path) -> None:
    path.write_bytes(b"\xff" * 500)


def foreign(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"other": np.zeros(3)}, path)


@pytest.mark.parametrize("damage", [Path.unlink, cut_off, flip, empty, malformed, foreign])
def test_missing_and_damaged_files_are_computed_anew(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage
) -> None:
    whole = visualise(base, FAST, tmp_path)
    damage(sorted(tmp_path.iterdir())[1])
    computed = count_computed(monkeypatch)
    assert same(visualise(base, FAST, tmp_path), whole)
    assert computed == [1]
    assert len(list(tmp_path.iterdir())) == 4
    assert same(visualise(base, FAST, tmp_path), whole)
    assert computed == [1]


def test_other_weights_or_settings_do_not_reuse_files(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visualise(base, FAST, tmp_path)
    computed = count_computed(monkeypatch)
    visualise(base, Visualisation(steps=2, batch=5), tmp_path)
    torch.manual_seed(5)
    visualise(base_of(ConvNet((8, "M", 12, "M", 12), 1, 10, 4), (1, 16, 16)), FAST, tmp_path)
    assert sorted(computed[:4]) == sorted(computed[4:]) == [0, 1, 2, 3]
    visualise(base, FAST, tmp_path)
    assert len(computed) == 8


def test_keys_of_stored_pictures_never_change():
    base = SimpleNamespace(
        name="m",
        groups=SimpleNamespace(digest="d"),
        mean=(0.5,),
        std=(0.25,),
        state={"w": np.arange(3, dtype=np.float32)},
    )
    key = "74e2a3569ca6460fb297b4441cc4e3bab5b4a87b1b59773405a53405c58d29a9"
    assert module._key(base, module.DEFAULT) == key
