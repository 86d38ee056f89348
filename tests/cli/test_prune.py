"""`fedcaptor prune`: budgets beside each other, and a tolerance verified on images that it was not calibrated on."""

import json
import re
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from fedcaptor import _measured_budgets, _measuring, _verification
from fedcaptor.cli.main import app
from fedcaptor.common.assets import asset
from fedcaptor.common.errors import ConfigError, DataError, ModelError, NormalisationWarning, PlanError
from fedcaptor.common.latency import LatencyTable, LayerTimes
from fedcaptor.common.timing import LatencyRatio
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.torch_engine.strategies import STRATEGIES
from fedcaptor.common.weights_file import load_state, save_state

WEIGHTS = asset("simulations/models/small_cnn_fashion.safetensors")
COMMAND = ["prune", "small-cnn", "--weights", str(WEIGHTS), "--classes", "0,6", "--calibration", "10", "--json"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    for module in (_measuring, _measured_budgets):
        monkeypatch.setattr(module, "measured_latency_ratio", lambda *_: LatencyRatio(0.45, 0.4, 0.5))


def run(*options):
    return CliRunner().invoke(app, [*COMMAND, *options])


@pytest.mark.slow
def test_several_budgets_hold_together_in_the_file(tmp_path):
    out = tmp_path / "submodel.safetensors"
    result = json.loads(run("--macs", "0.5", "--parameters", "0.3", "--bytes", "250000", "--out", str(out)).stdout)
    assert result["macs_ratio"] <= 0.5
    assert result["parameters_ratio"] <= 0.3
    assert out.stat().st_size == result["file_bytes"][".safetensors"] <= 250_000


@pytest.mark.slow
def test_bytes_that_no_file_of_the_format_can_have_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(_measuring, "prepare", lambda *_: pytest.fail("observed"))
    failed = run("--bytes", "20000", "--out", str(tmp_path / "small.pt2")).exception
    assert isinstance(failed, PlanError)
    assert re.search(r"bytes budget is 20000, \d+ as \.pt2 is the nearest possible", str(failed))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bytes_hold_for_every_file_as_written(tmp_path):
    files = [tmp_path / name for name in ("small.onnx", "small.safetensors")]
    outs = [word for file in files for word in ("--out", str(file))]
    result = json.loads(run("--bytes", "120000", *outs).stdout)
    assert {file.suffix: file.stat().st_size for file in files} == result["file_bytes"]
    assert 100_000 < max(result["file_bytes"].values()) <= 120_000


@pytest.mark.slow
def test_a_file_of_eight_bits_is_smaller_and_says_how_often_it_agrees(tmp_path):
    out = tmp_path / "small.onnx"
    result = json.loads(run("--macs", "0.4", "--int8", "--out", str(out)).stdout)
    assert result["file_bytes"] == {".onnx (int8)": out.stat().st_size}
    assert result["file_agreement"] > 0.95
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["T-shirt/top", "Shirt"]


@pytest.mark.slow
def test_classes_are_given_by_name():
    result = json.loads(run("--classes", "shirt,T-shirt/top", "--macs", "0.4").stdout)
    assert result["classes"] == [0, 6]
    assert result["class_names"] == ["T-shirt/top", "Shirt"]


def test_a_class_that_the_data_does_not_have_is_named():
    failed = run("--classes", "shoes").exception
    assert isinstance(failed, ConfigError)
    assert "class 'shoes' is none of T-shirt/top, Trouser" in str(failed)


def test_data_of_other_classes_is_refused(tmp_path):
    x = np.zeros((40, 28, 28, 1), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "other.npz", x=x, y=np.arange(40) % 2, names=["cat", "dog"])
    failed = run("--data", str(tmp_path / "other.npz")).exception
    assert isinstance(failed, DataError)
    assert "other.npz has 2 classes (cat, dog), the network 10" in str(failed)


@pytest.mark.slow
def test_a_normalisation_that_the_weights_do_not_state_is_told_and_given(tmp_path):
    state, metadata = load_state(WEIGHTS)
    bare = tmp_path / "bare.safetensors"
    save_state(bare, state, {"model": metadata["model"]})
    options = ["--weights", str(bare), "--macs", "0.4"]
    with pytest.warns(NormalisationWarning) as told:
        run(*options)
    texts = [str(one.message) for one in told]
    assert any("does not say mean and std" in text and "give --mean and --std" in text for text in texts)
    assert any("normalised otherwise than in training" in text for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NormalisationWarning)
        given = json.loads(run(*options, "--mean", "0.2857", "--std", "0.3531").stdout)
    assert given["accuracy_full"] == json.loads(run("--macs", "0.4").stdout)["accuracy_full"]
    failed = run(*options, "--mean", "0.5").exception
    assert "one of --mean and --std is given" in str(failed)


@pytest.mark.long
def test_budgets_are_compared(tmp_path):
    first, second = json.loads(run("--macs", "0.5,0.2").stdout)
    assert second["macs_ratio"] <= 0.2 < first["macs_ratio"] <= 0.5
    assert second["calibration_images"] == first["calibration_images"] == 20
    alone = json.loads(run("--macs", "0.2").stdout)
    assert {**alone, "seconds": 0} == {**second, "seconds": 0}
    table = CliRunner().invoke(app, [*COMMAND[:-1], "--macs", "0.5,0.2"]).stdout
    assert "macs 0.5" in table
    assert "macs 0.2" in table
    failed = run("--macs", "0.5,0.2", "--out", str(tmp_path / "small.pt2")).exception
    assert isinstance(failed, ConfigError)
    assert "choose a budget to write its submodel" in str(failed)


@pytest.mark.slow
def test_one_submodel_goes_into_several_files(tmp_path):
    files = [tmp_path / "small.safetensors", tmp_path / "small.pt2"]
    run("--macs", "0.5", *(word for file in files for word in ("--out", str(file))))
    images = np.random.default_rng(0).random((2, 1, 28, 28), dtype=np.float32)
    scores = torch.export.load(files[1]).module()(torch.from_numpy(images)).detach().numpy()
    weights = Standalone.read(files[0])
    again = weights.module(torch.from_numpy((images - weights.mean[0]) / weights.std[0])).numpy()
    np.testing.assert_allclose(scores, again, atol=0.02 * abs(again).max())  # weights are in half precision


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(_measuring, "load", lambda source: pytest.fail("looked at the images"))
    failed = run("--out", str(tmp_path / "small.pth")).exception
    assert isinstance(failed, ConfigError)
    assert "must end in .safetensors, .pt2, .onnx" in str(failed)


@pytest.mark.slow
def test_a_tolerance_is_verified_on_images_that_are_held_out():
    result = json.loads(run("--tolerance", "0.1").stdout)
    assert result["disagreement"] <= 0.1
    assert result["calibration_images"] == 20
    assert result["verifying_images"] > 100
    assert result["macs_ratio"] < 0.9


@pytest.mark.slow
def test_budgets_that_leave_no_room_for_the_tolerance_are_named():
    failed = run("--tolerance", "0.001", "--macs", "0.1").exception
    assert isinstance(failed, PlanError)
    assert "tolerance is 0.001, the largest submodel within the budgets disagrees on 0." in str(failed)


@pytest.mark.long
def test_images_to_judge_by_are_held_out_where_all_could_be_observed():
    result = json.loads(run("--tolerance", "0.3", "--calibration", "5000").stdout)
    assert result["verifying_images"] == pytest.approx(result["calibration_images"] / 3, abs=4)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--macs", "1.5", "MACs budget is 1.5"),
        ("--macs", "0.5,0", "MACs budget is 0.0"),
        ("--parameters", "0", "parameters budget is 0"),
        ("--bytes", "0", "bytes"),
        ("--latency", "2", "latency budget is 2.0"),
    ],
)
def test_senseless_budgets_are_refused(option, value, message):
    failed = run(option, value).exception
    assert isinstance(failed, PlanError)
    assert message in str(failed)


@pytest.mark.parametrize("macs", ["half", "0.5,", ""])
def test_what_is_no_budget_is_refused(macs):
    failed = run("--macs", macs).exception
    assert isinstance(failed, ConfigError)
    assert "must be ratios such as 0.4 or 0.5,0.3,0.1" in str(failed)


@pytest.mark.long
def test_any_strategy_can_be_recalibrated_and_tuned():
    options = ["--strategy", "taylor", "--macs", "0.5", "--recalibrate", "--tune-steps", "3"]
    cut, better = json.loads(run(*options[:4]).stdout), json.loads(run(*options).stdout)
    assert better["strategy"] == "taylor"
    assert better["macs_ratio"] == cut["macs_ratio"] <= 0.5
    assert better["accuracy"] > cut["accuracy"]
    assert better["tuning_steps"] == 3
    assert better["tuning_kept"] in (True, False)
    assert better["judging_images"] > 50
    assert better["tuning_images"] > 100


@pytest.mark.slow
def test_a_tolerance_holds_for_any_strategy():
    result = json.loads(run("--strategy", "taylor", "--tolerance", "0.3").stdout)
    assert result["disagreement"] <= 0.3
    assert result["macs_ratio"] < 1


@pytest.mark.slow
def test_a_strategy_that_compares_classes_sees_all_of_them():
    result = json.loads(run("--strategy", "captor", "--macs", "0.5").stdout)
    assert result["calibration_images"] == 20
    assert result["macs_ratio"] <= 0.5


def test_help_names_every_strategy():
    shown = " ".join(CliRunner().invoke(app, ["prune", "--help"]).stdout.split())
    for name in STRATEGIES:
        assert re.search(rf"\b{name}\b(?!-)", shown), name
    assert "needs the extra onnx" in re.sub(r"[│\s]+", " ", shown)


@pytest.mark.slow
def test_an_unknown_strategy_is_named():
    failed = run("--strategy", "magic").exception
    assert isinstance(failed, ConfigError)
    assert "must be one of reconstruct, reconstruct-agnostic, reconstruct-fisher" in str(failed)


@pytest.mark.long
def test_a_latency_is_planned_by_the_table_beside_the_weights(tmp_path, monkeypatch):
    weights = tmp_path / "small.safetensors"
    weights.write_bytes(WEIGHTS.read_bytes())
    beside = tmp_path / "small.latency.json"
    measured = []

    def table(base, multiple, on_layer):
        measured.append(multiple)
        lengths = {layer.name: LayerTimes((1,), (1, layer.full_outputs), ((0.0, 1.0),)) for layer in base.groups.layers}
        return LatencyTable(base.name, base.groups.input_shape, base.groups.digest, "torch", "by hand", 1, lengths)

    monkeypatch.setattr(_verification, "measure_table", table)
    options = ["--weights", str(weights), "--latency", "0.5"]
    first, second = (json.loads(run(*options).stdout) for _ in range(2))
    assert measured == [8]
    assert beside.exists()
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert 0 < first["latency_ratio_predicted"] <= 0.5
    assert (first["latency_ratio"], first["latency_ratio_low"], first["latency_ratio_high"]) == (0.45, 0.4, 0.5)
    assert first["latency_machine"] == "by hand"
    phones = tmp_path / "phone.json"  # what torch takes here, which is more, says nothing of a phone
    phones.write_text(beside.read_text().replace('"runtime":"torch"', '"runtime":"onnxruntime"'))
    third = json.loads(run(*options[:2], "--latency", "0.3", "--latency-table", str(phones)).stdout)
    assert third["latency_ratio_predicted"] <= 0.3 < third["latency_ratio_low"]
    for more, message in (
        (["--macs", "0.5", "--latency-table", str(phones)], "without a latency budget"),
        (["--latency", "0.5", "--latency-table", str(tmp_path / "none.json")], r"none\.json is no latency table"),
    ):
        refused = run(*options[:2], *more).exception
        assert isinstance(refused, ConfigError)
        assert re.search(message, str(refused))
    beside.write_text(
        beside.read_text().replace('"model":"small-cnn"', '"model":"vgg16"').replace('"digest":"', '"digest":"0')
    )
    failed = run(*options).exception
    assert isinstance(failed, ModelError)
    assert "small.latency.json: latency table is of vgg16" in str(failed)
