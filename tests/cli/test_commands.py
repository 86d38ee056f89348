"""The `fedcaptor` command as a person types it: output, exit codes and messages."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from fedcaptor.cli.main import app, main
from fedcaptor.common.config import load_config
from fedcaptor.common.torch_engine import registry
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.weights_file import load_state, save_state
from fedcaptor.simulations.runner import SHIPPED
from tests import tiny
from tests.common import own_networks

pytestmark = pytest.mark.usefixtures("one_thread")


def ran(*words: str) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data of three classes on 16 × 16 pixels, and small-cnn trained on it for one epoch."""
    folder = tmp_path_factory.mktemp("small")
    data, weights = folder / "data.npz", folder / "weights" / "small.safetensors"
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=240)
    x = (rng.integers(0, 60, (240, 16, 16)) + 80 * (y[:, None, None] == np.arange(16)[:, None] // 6)).astype(np.uint8)
    np.savez_compressed(data, x=x, y=y, names=np.array(["top", "middle", "bottom"]))
    words = ["train", "small-cnn", "--data", str(data), "--out", str(weights), "--epochs", "1"]
    ran(*words)
    return data, weights


def test_train_writes_weights_with_what_was_measured(small: tuple[Path, Path]) -> None:
    with safe_open(small[1], framework="np") as file:
        metadata = file.metadata()
    assert metadata["model"] == "small-cnn"
    assert metadata["data"] == "data.npz"
    assert metadata["epochs"] == "1"
    assert 0.3 < float(metadata["accuracy"]) <= 1
    assert re.fullmatch(r"\([0-9.]+,\)", metadata["mean"])


def test_calibrated_weights_are_of_a_network_whose_outputs_can_be_believed(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    """A bias that training on uneven classes would leave is found and taken out."""
    data, weights = small
    state, metadata = load_state(weights)
    bias = next(name for name in reversed(state) if name.endswith(".bias"))
    save_state(tmp_path / "uneven.safetensors", state | {bias: state[bias] + np.float32([4, 0, 0])}, metadata)
    words = ["--weights", str(tmp_path / "uneven.safetensors"), "--data", str(data)]
    said = ran("calibrate", "small-cnn", *words, "--out", str(tmp_path / "even.safetensors"))
    before, after = map(float, re.findall(r"([0-9.]+)% ", said.replace("now", " ")))
    assert after > before
    found, kept = load_state(tmp_path / "even.safetensors")
    assert kept == {key: text for key, text in metadata.items() if key != "accuracy"}  # which was that of before
    moved = found[bias] - state[bias].astype(np.float32)
    assert moved[0] - moved[1:].mean() < 3  # of the 4 that were added
    assert list(found) == list(state)


def test_inspect_shows_what_is_cut_together(small: tuple[Path, Path]) -> None:
    data, weights = small
    words = ["inspect", "small-cnn", "--weights", str(weights), "--data", str(data)]
    groups = json.loads(ran(*words, "--json"))
    assert groups["input_shape"] == [1, 16, 16]
    assert groups["groups"][-1]["output"]
    assert groups["groups"][-1]["channels"] == 3
    table = ran(*words)
    assert "MACs" in table
    assert all(group["name"] in table for group in groups["groups"])


def test_inspect_says_what_each_layer_costs_in_valid_json(small: tuple[Path, Path]) -> None:
    data, weights = small
    words = ["inspect", "small-cnn", "--weights", str(weights), "--data", str(data), "--latency"]
    found = json.loads(ran(*words, "--json"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    costs = found["costs"]
    assert sum(row["share_of_macs"] for row in costs) == pytest.approx(1)
    assert sum(row["macs"] for row in costs) == found["macs"]
    assert sum(row["parameters"] for row in costs) == found["parameters"]
    assert all(row["milliseconds"] > 0 for row in costs if row["macs"])
    assert found["groups"][0]["consumers"][0]["rectified"] == "unbounded"
    table = ran(*words)
    assert "share of MACs" in table
    assert "ms" in table


def test_what_stays_whole_is_said_before_training_and_by_inspect(small: tuple[Path, Path], tmp_path: Path) -> None:
    model, line = f"{own_networks.__name__}:halved", "all channels of one, last: an operation splits or reorders them"
    assert f"prune keeps {line}" in ran("inspect", model, "--data", str(small[0]))
    words = ["train", model, "--data", str(small[0]), "--out", str(tmp_path / "a.safetensors"), "--epochs", "1"]
    said = CliRunner().invoke(app, words).stderr
    assert said.index(f"prune will keep {line}") < said.index("accuracy")
    words[1] = f"{own_networks.__name__}:shared"
    said = CliRunner().invoke(app, words).stderr
    assert "prune will refuse this network: " in said
    assert "layer twice is used twice" in said


@pytest.mark.parametrize("images", [65, 1])
def test_training_needs_two_images_and_no_batch_has_one(
    images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, split = np.random.default_rng(0), ["train"] * images + ["validation"] * 2 + ["test"] * 2
    x, y = rng.integers(0, 256, (len(split), 16, 16), np.uint8), np.arange(len(split)) % 2
    np.savez(tmp_path / "few.npz", x=x, y=y, split=np.array(split))
    monkeypatch.chdir(tmp_path)
    words = ["train", "small-cnn", "--data", "few.npz", "--out", "a.safetensors", "--epochs", "1"]
    if images > 1:
        ran(*words)
        return
    code, text = failed(capsys, monkeypatch, *words)
    assert code == 2
    assert "few.npz: part 'base' gets 1 image, at least 2 are needed to train: give more images" in text


@pytest.mark.slow
def test_prune_keeps_two_classes_of_the_shipped_model(tmp_path: Path) -> None:
    out = tmp_path / "two.safetensors"
    words = [
        "prune",
        "small-cnn",
        "--weights",
        str(SHIPPED),
        "--classes",
        "5,3",
        "--macs",
        "0.4",
        "--calibration",
        "20",
    ]
    figures = json.loads(ran(*words, "--macs", "0.4", "--out", str(out), "--json"))
    assert figures["classes"] == [3, 5]
    assert 0.2 < figures["macs_ratio"] <= 0.4
    assert figures["accuracy"] > figures["accuracy_full_limited"] - 0.03
    assert 0 < figures["parameters_ratio"] < 1
    assert figures["calibration_images"] == 40
    assert Standalone.read(out).labels.tolist() == [3, 5]
    assert out.stat().st_size < SHIPPED.stat().st_size * (figures["parameters_ratio"] + 0.05)


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "small-cnn", "--weights", str(SHIPPED), "--classes", "3"],
        ["train", "small-cnn"],
        ["atlas", "small-cnn", "--weights", str(SHIPPED)],
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, text = failed(capsys, monkeypatch, *command, "--data", "no/data", "--out", str(tmp_path / "file" / "a.pt2"))
    assert code == 2
    assert f"cannot be written ({tmp_path / 'file'} is a file): choose another place" in text


@pytest.mark.parametrize("command", [["simulate"], ["simulate", "--fresh"], ["simulate", "--seeds", "0,1"]])
def test_a_file_in_the_place_of_a_folder_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, text = failed(capsys, monkeypatch, *command, "--out", str(tmp_path / "file"))
    assert code == 2
    assert f"({tmp_path / 'file'} is a file): choose another place" in text


@pytest.mark.slow
@pytest.mark.parametrize("command", [["prune", "--classes", "3"], ["inspect"], ["atlas", "--out", "a.html"]])
def test_weights_that_are_no_numbers_are_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, metadata = load_state(SHIPPED)
    state["features.0.weight"][0, 0] = np.nan
    save_state(tmp_path / "nan.safetensors", state, metadata)
    monkeypatch.chdir(tmp_path)
    code, text = failed(capsys, monkeypatch, command[0], "small-cnn", "--weights", "nan.safetensors", *command[1:])
    assert code == 2
    assert "error: nan.safetensors: 9 of 288 values of tensor features.0.weight are not finite, all must be" in text


def test_a_full_disk_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "summary.json").write_text('{"seed": 0}')
    monkeypatch.setattr("fedcaptor._simulation.write_report", full)
    code, text = failed(capsys, monkeypatch, "report", str(tmp_path))
    assert code == 2
    assert "error: [Errno 28] No space left on device" in text


def test_config_checks_a_scenario_and_prints_all_values(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[run]\nseed = 9\n")
    assert json.loads(ran("config", str(file))) == load_config(file).model_dump(mode="json")
    page = ran("config", "--reference")
    assert "| `min_cohort` | `50` |" in page
    (tmp_path / "phone.toml").write_text(ran("config", str(file), "--for", "phone"))
    assert "seed" not in (tmp_path / "phone.toml").read_text()
    assert load_config(tmp_path / "phone.toml") == load_config()


def failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Exit code and error text, line breaks taken out, of the command as the shell calls it."""
    monkeypatch.setattr(sys, "argv", ["fedcaptor", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    code = ended.value.code
    assert isinstance(code, int)
    return code, " ".join(captured.err.split())


PRUNE = ["prune", "small-cnn", "--weights", str(SHIPPED), "--classes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*PRUNE, "shoes"], "error: class 'shoes' is none of T-shirt/top, Trouser"),
        ([*PRUNE, "3,12"], "error: classes are 3,12, labels of this model lie in 0..9"),
        ([*PRUNE, "3", "--macs", "1.2"], r"error: MACs budget is 1.2, must lie in (0, 1]"),
        ([*PRUNE, "3", "--macs", "0.0001"], "0.0122 is the nearest possible with multiples of 8"),
        ([*PRUNE, "3", "--data", "nothing.npz"], "nothing.npz"),
        (["prune", "vgg17", "--weights", str(SHIPPED), "--classes", "3"], "model is 'vgg17', must be one of"),
        (["prune", "vgg16", "--weights", str(SHIPPED), "--classes", "3"], "use the weights of this model"),
        (["inspect", "small-cnn", "--weights", "missing.safetensors"], "missing.safetensors does not exist"),
        ([*PRUNE[:3], "missing.safetensors", "--classes", "3"], "missing.safetensors does not exist: correct the path"),
        (["config", "missing.toml"], "error: missing.toml does not exist: correct the path"),
        (["config", "."], "error: . is a folder: name a file in it"),
        (["simulate", "demonstration"], "demonstration does not exist: correct the path, or give a shipped scenario"),
        (["report", "missing"], "error: missing is not a folder: give the folder of a finished run"),
        ([*PRUNE, "3", "--seed", "-1"], "error: seed is -1, must lie in 0..9223372036854775807: give another"),
        (["train", "small-cnn", "--out", "a.safetensors", "--seed", "-1"], "error: seed is -1, must lie in 0.."),
        (["atlas", *PRUNE[1:4], "--out", "a.html", "--seed", "-1"], "error: seed is -1, must lie in 0.."),
        (["simulate", "--set", "run.sed=1"], "error: run.sed is unknown: did you mean seed?"),
        (["simulate", "--set", "population.phones=30"], "the cohort has 30 phones, privacy.min_cohort is 50"),
        (["report", "."], "error: "),
        (["exporter", ".", "--host", "not an address"], "error: the exporter cannot listen on not an address"),
        (["exporter", ".", "--tls-key", "key.pem"], "error: TLS needs a certificate and its key: give both files"),
        (["exporter", ".", "--certificate", "front.pem"], "error: front.pem does not exist: correct the path"),
        (
            ["dashboards", ".", "--prometheus", "localhost"],
            "error: the address of Prometheus is 'localhost', must begin",
        ),
        (["prune", "small-cnn"], "Missing option '--weights'"),
        (["train", "--out", "a.safetensors"], "Missing argument 'MODEL'"),
        (["models", "vgg17"], "error: model is 'vgg17', must be one of alexnet, resnet20"),
        (["unheard"], "No such command 'unheard'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_message(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = failed(capsys, monkeypatch, *words)
    assert code == 2
    assert message in text


@pytest.mark.slow
def test_a_warning_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state, _ = load_state(SHIPPED)
    save_state(tmp_path / "bare.safetensors", state, {})
    words = [
        "prune",
        "small-cnn",
        "--weights",
        str(tmp_path / "bare.safetensors"),
        "--classes",
        "3",
        "--macs",
        "0.0001",
    ]
    assert "warning: " in (text := failed(capsys, monkeypatch, *words)[1])
    assert "bare.safetensors does not say mean and std of the pixels that it was trained on" in text
    assert "Warning:" not in text


def test_a_folder_with_something_else_is_not_removed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    code, text = failed(capsys, monkeypatch, "simulate", "--fresh", "--out", str(tmp_path))
    assert code == 2
    assert "holds no run" in text
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_a_small_simulation_prints_its_summary_and_report_rewrites_it(bars: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = bars
    file, out = tmp_path / "small.toml", tmp_path / "run"
    file.write_text(f'[model]\nname = "{tiny.MODEL}"\n')
    sets = [word for value in tiny.overrides(data, weights)[3:] for word in ("--set", value)]
    words = ["simulate", str(file), "--data", str(data), "--weights", str(weights), *sets, "--out", str(out)]
    summary = json.loads(ran(*words, "--json"))
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["data"], summary["model"], summary["phones"]) == (data.name, tiny.MODEL, 30)
    (out / "report.html").unlink()
    assert "personalised submodel" in ran("report", str(out))
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("model", [["small-cnn"], ["--model", "small-cnn"], ["--model=small-cnn"]])
def test_the_model_may_be_named_as_in_earlier_releases(
    model: list[str], small: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "again.safetensors"
    ran("train", *model, "--data", str(small[0]), "--out", str(out), "--epochs", "1")
    again, first = load_file(out), load_file(small[1])
    assert all(np.array_equal(again[name], tensor) for name, tensor in first.items())


def test_the_version_is_that_of_the_package() -> None:
    assert ran("--version") == f"fedcaptor {version('fedcaptor')}\n"


def test_registered_models_are_listed_with_what_can_be_cut() -> None:
    row, other = json.loads(ran("models", "small-cnn", "resnet20", "--json"))
    assert {name: row[name] for name in ("name", "classes", "input_shape", "parameters", "macs")} == {
        "name": "small-cnn", "classes": 10, "input_shape": [1, 28, 28], "parameters": 665_194, "macs": 28_590_848,
    }  # fmt: skip
    assert list(row["prunable"].values()) == [32, 48, 96, 96, 192, 192, 128]
    assert (other["name"], len(other["prunable"])) == ("resnet20", 12)
    lines = [line.split() for line in ran("models", "small-cnn").splitlines()]
    assert ["small-cnn", "10", "1×28×28", "0.67", "M", "29", "M", "784", "7"] in lines


def test_every_registered_model_says_what_it_was_designed_for() -> None:
    assert [registry.made_for(name)[0] for name in registry.names() if "torchvision" in name] == [1000] * 4


def test_every_command_has_help() -> None:
    text = ran("--help")
    for command in (
        "train",
        "inspect",
        "models",
        "prune",
        "atlas",
        "simulate",
        "report",
        "exporter",
        "dashboards",
        "config",
    ):
        assert command in text
        assert "--help" in ran(command, "--help")
