"""Configuration: what a person gets wrong is named with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.config import Config, load_config, parse, reference_page
from fedcaptor.common.errors import ConfigError

SCENARIOS = sorted((Path(__file__).parents[2] / "simulations" / "scenarios").glob("*.toml"))


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
    with pytest.raises(ConfigError, match=r"a\.toml cannot be read as TOML .*: correct the file"):
        load_config(file)
    file.write_text("[run\n")
    with pytest.raises(ConfigError, match="correct the file"):
        load_config(file)
    file.write_text("run = 3\n")
    with pytest.raises(ConfigError, match=r"\[run\] is 3, must be a section"):
        load_config(file, ["run.seed=1"])
    with pytest.raises(ConfigError, match="run is 3"):
        load_config(file)


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


def test_the_reference_page_has_every_key() -> None:
    page = reference_page()
    for section, field in Config.model_fields.items():
        assert f"[{section}]" in page
        for key, value in getattr(field.annotation, "model_fields", {}).items():
            assert f"| `{key}` |" in page
            assert value.description
