"""Configuration: what a person gets wrong is named with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.config import Config, load_config, parse
from fedcaptor.common.errors import ConfigError

SCENARIOS = sorted((Path(__file__).parents[3] / "simulations" / "scenarios").glob("*.toml"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("populatoin.phones=3", r"populatoin is unknown: did you mean population\?"),
        ("population.phons=3", r"population.phons is unknown: did you mean phones\?"),
        ("run.zzz=3", "run.zzz is unknown, known are seed, rounds"),
        ("population.phones=0", "population.phones is 0: Input should be greater than or equal to 1"),
        ("planner.macs=1.5", "planner.macs is 1.5: Input should be less than or equal to 1"),
        ("privacy.epsilon=nan", "privacy.epsilon is nan"),
        ("population.law=zipfs", "population.law is 'zipfs': Input should be 'habits'"),
        ("run.seed=many", "run.seed is 'many'"),
        ("population.classes_min=9", "classes_min 9 is above classes_max 4: lower it"),
        ("privacy.scores_share=0.9", "leave nothing for usage"),
        ("run.seed", "override 'run.seed' is not section.key=value, for example run.seed=1"),
        ("seed=1", "is not section.key=value"),
        ("run.=1", "is not section.key=value"),
        ("usage.prior=inf", r"usage\.prior is inf: Input should be a finite number"),
        ("personal.ladder=[nan]", r"personal\.ladder\.0 is nan"),
        ("population.partitioner_arguments={alpha=inf}", "finite"),
        ("faults.malformed=1.5", r"faults\.malformed is 1\.5"),
        (
            "privacy.dropout=0.5",
            r"allows no cohort of masked sums.* is 1\.05, must be below 1: lower .* 0\.475",
        ),
        ("privacy.dropout=0.475", "must be below 1"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_overrides_come_after_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[run]\nseed = 4\nrounds = 2\n[data]\nsource = "x.npz"\n')
    config = load_config(file, ["run.seed=5", "run.seed = 6", "personal.ladder=[0.5, 0.1]", "model.name=vgg16"])
    assert (config.run.seed, config.run.rounds, config.data.source) == (6, 2, "x.npz")
    assert config.personal.ladder == (0.5, 0.1)
    assert config.model.name == "vgg16"


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml does not exist: correct the path"):
        load_config(file)
    file.write_text("[run\n")
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read as TOML .*: correct the file"):
        load_config(file)
    file.write_text("run = 3\n")
    with pytest.raises(ConfigError, match=r"\[run\] is 3, must be a section"):
        load_config(file, ["run.seed=1"])
    with pytest.raises(ConfigError, match="run is 3"):
        load_config(file)
    with pytest.raises(ConfigError, match="must be sections of keys"):
        parse([1])  # type: ignore[arg-type]


@given(st.integers(0, 2**40), st.floats(0.01, 1), st.booleans())
def test_a_stored_configuration_reads_back_alike(seed: int, macs: float, noise: bool) -> None:
    config = parse({"run": {"seed": seed}, "planner": {"macs": macs}, "privacy": {"noise": noise}})
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.digest == config.digest
    other = parse({"run": {"seed": seed + 1}, "planner": {"macs": macs}, "privacy": {"noise": noise}})
    assert other.digest != config.digest


def test_marks_say_what_must_be_said() -> None:
    assert load_config().marks(simulated=False) == []
    loose = load_config(None, ["privacy.sums=plain", "privacy.noise=false", "testing.small_cohorts=true"])
    assert loose.marks(simulated=True) == ["sums not encrypted", "seeded noise", "noise off", "small cohorts"]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(scenario: Path) -> None:
    config = load_config(scenario)
    assert parse(config.model_dump()) == config


def test_a_dropout_that_masks_cannot_survive_is_allowed_without_masks() -> None:
    assert load_config(None, ["privacy.dropout=0.47"]).privacy.dropout == 0.47
    assert load_config(None, ["privacy.dropout=0.6", "privacy.sums=plain"]).privacy.dropout == 0.6


HOSTILE = {
    "run.seed = " + "9" * 5000: r"cannot be read as TOML \(.*digits.*\): correct",
    "run.seed = 0x" + "f" * 5000: r"run\.seed is an integer of 20000 bits, the bound is 64",
    "run.seed = 9223372036854775808": "run.seed is an integer of 64 bits",
    "population.partitioner_arguments.x = " + "[" * 100_000: "nested too deeply, the bound is 8 levels",
    "run.seed = " + "[" * 20 + "]" * 20: r"run\.seed\.0.* is nested too deeply, the bound is 8 levels",
    "run.seed = " + "{a = " * 50_000 + "1" + "}" * 50_000: "nested too deeply",
    "run." + "a." * 500 + "b = 1": "nested too deeply",
    "data.source = 3 # " + "x" * (1 << 20): "has more than 1,048,576 ",
    'privacy.sums = "' + "x" * 100_000 + '"': r"privacy\.sums is 'xxx.*\.\.\..*': Input should be 'masked'",
    "run." + "x" * 100_000 + " = 1": "is unknown, known are seed, rounds",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_file_holds_the_error_is_short_and_names_the_bound(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=HOSTILE[text]) as caught:
        load_config(file)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [text for text in HOSTILE if ".a." not in text], ids=lambda text: text[:16])
def test_whatever_an_override_holds_the_error_is_short(text: str) -> None:
    key, _, value = text.partition(" = ")
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}={value}"])
    assert len(str(caught.value)) < 1000


def test_many_errors_are_told_in_part(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[run]\n" + "".join(f"x{number} = 1\n" for number in range(1000)))
    with pytest.raises(ConfigError, match=r"; and 995 more$"):
        load_config(file)


def test_a_file_that_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="bound of a configuration"):
        load_config(Path("/dev/zero"))


def test_a_file_is_utf_8_wherever_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes('data.source = "Übung.npz"'.encode())
    assert load_config(file).data.source == "Übung.npz"
    file.write_bytes(b'data.source = "\xff.npz"')
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        load_config(file)


def test_a_renamed_key_is_read_under_its_former_name_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[faults]\nrubbish = 0.25\nsilence = 0.1\n")
    config = load_config(file)
    assert (config.faults.malformed, config.faults.silence) == (0.25, 0.1)
    assert [record.getMessage() for record in caplog.records] == ["faults.rubbish is now faults.malformed: rename it"]
    assert load_config(file, ["faults.malformed=0.1"]).faults.malformed == 0.1
    assert load_config(None, ["faults.rubbish=0.2"]) == load_config(None, ["faults.malformed=0.2"])
    assert parse({"faults": {"rubbish": 0.25, "silence": 0.1}}) == config
    assert "rubbish" not in config.model_dump_json()
    file.write_text("[faults]\nrubbish = 0.25\nmalformed = 0.1\n")
    with pytest.raises(ConfigError, match=r"faults\.rubbish is the former name of faults\.malformed: give the latter"):
        load_config(file)
