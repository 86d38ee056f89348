"""Training: what is told, what a kill and an interruption leave, and that going on changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedcaptor
from fedcaptor import _training
from fedcaptor.common.weights_file import load_state
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 4


def with_dropout(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network that draws from torch's own random stream when it is trained."""
    return nn.Sequential(tiny.network(classes, shape), nn.Dropout(0.3))


MODEL = f"{__name__}:with_dropout"


@pytest.fixture(scope="module")
def whole(bars: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a training that nothing stopped."""
    out = tmp_path_factory.mktemp("train") / "whole.safetensors"
    fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return out


def contents(path: Path) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Tensors and metadata, which the file format stores in no certain order."""
    state, metadata = load_state(path)
    return {name: tensor.tolist() for name, tensor in state.items()}, metadata


def stopped_in(epoch: int, error: type[BaseException], patched: pytest.MonkeyPatch) -> None:
    """Let training end with an error in the middle of an epoch, counted from 1."""
    fit: Callable[..., None] = _training._fit_epoch

    def stopping(training: Any, images: Any, on_step: Callable[[int, int], None]) -> None:
        def step(done: int, total: int) -> None:
            on_step(done, total)
            if done == (epoch - 1) * total // EPOCHS + 3:
                raise error

        fit(training, images, step)

    patched.setattr(_training, "_fit_epoch", stopping)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_stopped_training_ends_like_one_that_was_not(
    error: type[BaseException], whole: Path, bars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "own.safetensors"
    for epoch in (2, 4):
        with monkeypatch.context() as patched:
            stopped_in(epoch, error, patched)
            with pytest.raises(error):
                fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False)
        torch.rand(5)  # whatever else the process draws
    fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False)
    assert contents(out) == contents(whole)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_an_interruption_leaves_the_best_weights_and_says_so(
    bars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.safetensors"
    accuracies = iter([0.25, 0.5, 0.125])
    first: list[torch.Tensor] = []

    def accuracy(images: _training._Images, network: nn.Module, part: Any) -> float:
        if len(part) > len(images.reference):
            return 0.75
        first.append(next(network.parameters()).detach().clone())
        return next(accuracies)

    monkeypatch.setattr(_training._Images, "accuracy", accuracy)
    stopped_in(4, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS)
    text = capsys.readouterr().err
    assert "bars.npz, 1500 images: trains on 681 (45%), validates on 148 (10%), keeps for phones 671 (45%)" in text
    assert "epoch 2 of 4: validation accuracy 0.5000\n" in text
    assert text.endswith(
        f"{out}: accuracy 0.7500 on 819 images that were not trained on\n"
        "interrupted: these are the weights of epoch 2, the best of 3 by validation accuracy; "
        "the same command goes on\n"
    )
    state, metadata = load_state(out)
    assert metadata["epochs"] == "2"
    np.testing.assert_array_equal(state["0.0.weight"], first[1].half().float())


def test_nothing_is_written_before_the_first_epoch(
    bars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_in(1, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fedcaptor.train(MODEL, str(bars[0]), out=tmp_path / "own.safetensors", epochs=EPOCHS)
    assert "interrupted in the first epoch: nothing is written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_settings_or_damage_is_refused(
    whole: Path, bars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "own.safetensors"
    with monkeypatch.context() as patched:
        stopped_in(2, MemoryError, patched)
        with pytest.raises(MemoryError):
            fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False)
    with pytest.raises(fedcaptor.StateError, match=r"seed is 0 there and 1 here: start anew with --fresh"):
        fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, seed=1, progress=False)
    checkpoint = tmp_path / "own.safetensors.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(fedcaptor.StateError, match=r"cannot be gone on from .*--fresh"):
        fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False)
    fedcaptor.train(MODEL, str(bars[0]), out=out, epochs=EPOCHS, progress=False, fresh=True)
    assert contents(out) == contents(whole)


@pytest.mark.long
def test_the_command_goes_on_after_a_kill(whole: Path, bars: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "own.safetensors"
    words = ["train", MODEL, "--data", str(bars[0]), "--out", str(out), "--epochs", str(EPOCHS)]
    command = [sys.executable, "-m", "fedcaptor.cli.main", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "own.safetensors.checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert "own.safetensors.checkpoint: goes on after epoch " in done.stderr
    assert contents(out) == contents(whole)
