"""Simulated runs: a scenario in, frames of figures and a report out."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

from fedcaptor._parts import Value, as_override
from fedcaptor._progress import shown_on
from fedcaptor.common.assets import asset
from fedcaptor.common.config import MARKS, Config, load_config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.statistics import BUILT_IN, registered
from fedcaptor.simulations.records import ROUNDS, STATISTICS, SUMMARY, SWEEP
from fedcaptor.simulations.report import COMPARISON, write_comparison, write_report
from fedcaptor.simulations.run_lock import locked, refuse_if_in_use
from fedcaptor.simulations.runner import remove_run, require_run
from fedcaptor.simulations.runner import simulate as run_here
from fedcaptor.simulations.seeds import folder_of, parse_seeds
from fedcaptor.simulations.sweep import figures
from fedcaptor.simulations.sweep_folder import is_sweep, rewrite, run_sweep

Scenario = str | Path | Config | None
Overrides = Mapping[str, Value] | Iterable[str]
Engine = Literal["local", "ray"]

STEPS = {
    "messages": "phones answer",
    "visualise": "what filters look for",
    "plans": "cluster plans",
    "oracle": "true accuracy",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A finished simulation: one run, or a sweep of one run for each seed.

    Attributes:
        folder: Where its files are.
        seeds: The seeds, in the order of the rows below.
        record: Contents of `summary.json`, or of `sweep.json` for a sweep.
    """

    folder: Path
    seeds: tuple[int, ...]
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run or a sweep that was finished earlier. Raises StateError when the folder holds none."""
        place = Path(folder)
        file = place / (SWEEP if is_sweep(place) else SUMMARY)
        record = _read(file)
        try:
            seeds = record["seeds"] if is_sweep(place) else [record["seed"]]
            return cls(place, tuple(int(seed) for seed in seeds), record)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{file} is damaged ({error!r}); run the simulation again") from error

    @property
    def is_sweep(self) -> bool:
        """Whether it has a run for each of several seeds."""
        return is_sweep(self.folder)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Headline figures, one row for each seed: columns `seed`, then all of `summary.json` by dotted name."""
        return pd.DataFrame([{"seed": s, **_flat(_read(self._of(s) / SUMMARY))} for s in self.seeds])

    @cached_property
    def phones(self) -> pd.DataFrame:
        """One row for each phone of each seed: `seed`, `phone`, and its figures, accuracies in [0, 1]."""
        return _together(self.seeds, lambda seed: _phones(_read(self._of(seed) / "details.json")["phones"]))

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row for each round of each seed: `seed`, the columns of `rounds.csv`, known to the server, and the means
        `accuracy_full`, `accuracy_submodel` and `accuracy_personalised` over the phones, known to the simulator alone.
        """
        return _together(self.seeds, lambda seed: _rounds(self._of(seed)))

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """What registered statistics of one's own came to: a column each beside `seed`, one row for each seed."""
        files = {seed: self._of(seed) / STATISTICS for seed in self.seeds}
        return pd.DataFrame([{"seed": s, **(_read(file) if file.exists() else {})} for s, file in files.items()])

    def report(self) -> Path:
        """Write the report page anew. Returns its path."""
        if self.is_sweep:
            rewrite(self.folder)
        else:
            write_report(self.folder)
        return self.folder / "report.html"

    def __repr__(self) -> str:
        seeds = f"seeds {', '.join(map(str, self.seeds))}" if self.is_sweep else f"seed {self.seeds[0]}"
        return f"<fedcaptor.Run in {self.folder}, {seeds}>"

    def _of(self, seed: int) -> Path:
        return folder_of(self.folder, seed) if self.is_sweep else self.folder


def simulate(
    scenario: Scenario = None,
    overrides: Overrides = (),
    *,
    seeds: Iterable[int] | str | None = None,
    out: str | Path | None = None,
    engine: Engine = "local",
    workers: int | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Run:
    """Let many simulated phones find out their classes privately and get pruned submodels of their own.

    A run that was stopped goes on where it was when called again alike; a finished one is not repeated in a sweep.

    Args:
        scenario: TOML file, the name of a shipped one such as `demo`, a `fedcaptor.Config`, or None for the defaults.
        overrides: Values by `section.key`, which win over the scenario's: a mapping, or texts such as `run.rounds=2`.
            Where a part of one's own can be named (`fedcaptor.protocols`), its function or class may be given.
        seeds: Seeds of a sweep, as numbers or text (`0..4`), one run each; they win over `run.seed`. None: one run.
        out: Folder of the run. None: `runs/NAME-DIGEST`, of the scenario's name and the configuration, so that the same
            call goes on and another one does not collide with it.
        engine: `local`, this process, or `ray`, Flower's simulation; the figures are the same.
        workers: Phones that answer at the same time, with the engine `local`. None: one for each core. Each takes
            memory; the figures do not depend on it.
        fresh: Remove an earlier run in the folder first.
        progress: Whether progress is shown on standard error: bars on a terminal, lines elsewhere.

    Returns:
        The run with its figures as pandas frames.

    Raises:
        ConfigError: A value that is unknown or outside its bounds.
        PrivacyError: Cohorts that are too small to publish anything.
        StateError: The folder holds another run, or another process works in it.

    Example:
        ```python
        run = fedcaptor.simulate("demo", {"population.phones": 60}, seeds=range(3))
        print(run.summary[["seed", "accuracy.personalised.mean", "macs_ratio"]])
        ```
    """
    file = scenario if isinstance(scenario, Config) else _scenario(scenario)
    texts = [*map(as_override, overrides.items())] if isinstance(overrides, Mapping) else list(overrides)
    console = Console(stderr=True, quiet=not progress, highlight=False, markup=False, soft_wrap=True)
    chosen = parse_seeds(seeds) if isinstance(seeds, str) else None if seeds is None else tuple(seeds)
    place = _default(file, texts, chosen is not None) if out is None else Path(out)
    if engine == "ray":
        _require_known_elsewhere(file)
    if workers is not None and (engine == "ray" or workers < 1):
        raise ConfigError(f"workers is {workers}, must be at least 1, and is for the engine local alone: leave it out")
    if chosen is None:
        if is_sweep(place):
            raise StateError(f"{place} holds a sweep: choose another --out, or give --seeds")
        refuse_if_in_use(place)
        return Run.open(_run(file, texts, place, engine, workers, fresh, console))
    if not chosen:
        raise ConfigError("seeds are empty: give at least one, or None for one run of the scenario's own seed")
    by_seed = {seed: [*texts, f"run.seed={seed}"] for seed in chosen}
    configs = {seed: load_config(file, each) for seed, each in by_seed.items()}
    removed = [folder for seed in configs if fresh and (folder := folder_of(place, seed)).exists()]
    for folder in removed:
        require_run(folder)

    def run(seed: int, folder: Path) -> dict[str, Any]:
        console.print(f"seed {seed}: {folder}", highlight=False)
        return _read(_run(file, by_seed[seed], folder, engine, workers, False, console) / SUMMARY)

    with locked(place, console.print):
        for folder in removed:
            with locked(folder):
                remove_run(folder)
        run_sweep(place, configs, run, _command(file, texts, place, engine, chosen))
    return Run.open(place)


def _command(
    file: Path | Config | None, texts: Iterable[str], out: Path, engine: Engine, seeds: Iterable[int] = ()
) -> str:
    """The command that does what a call of `simulate` does."""
    if isinstance(file, Config):
        return "fedcaptor.simulate, called from Python with a configuration: see config.json"
    shipped = file is not None and file.parent == asset("simulations/scenarios")
    words = ["fedcaptor", "simulate", *([file.stem if shipped else str(file)] if file else [])]
    words += [word for text in texts for word in ("--set", text)]
    words += ["--engine", engine] if engine != "local" else []
    chosen = ",".join(map(str, seeds))
    return shlex.join([*words, *(["--seeds", chosen] if chosen else []), "--out", str(out)])


def compare(folders: Iterable[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of several finished runs and sweeps side by side; returns its path.

    `out` None: `comparison.html` beside the first folder. Raises StateError when a folder holds no finished run.
    """
    places = [Path(folder) for folder in folders]
    return write_comparison(places, places[0].resolve().parent / COMPARISON if out is None else Path(out))


def meanings(marks: Iterable[str]) -> list[str]:
    """Each mark with what it means."""
    return [f"{mark}: {MARKS[mark]}" for mark in marks if mark in MARKS]


def _run(
    file: Path | Config | None,
    texts: list[str],
    out: Path,
    engine: Engine,
    workers: int | None,
    fresh: bool,
    console: Console,
) -> Path:
    """One run; returns its folder."""
    config = load_config(file, texts)
    if fresh:
        require_run(out)
    with locked(out, console.print):
        if fresh:
            remove_run(out)
        if engine == "local":
            with_progress(config, out, console, _command(file, texts, out, engine), workers)
        else:
            _with_ray(file, texts, out, config.population.phones)
    return out


def _require_known_elsewhere(file: Path | Config | None) -> None:
    """Raise ConfigError for what the processes of Flower's simulation engine cannot have."""
    if isinstance(file, Config):
        raise ConfigError("engine is ray, the scenario a Config: other processes read it, give a TOML file")
    if added := [statistic.name for statistic in registered() if statistic not in BUILT_IN]:
        raise ConfigError(f"engine is ray, its processes lack the statistic {', '.join(added)}: use the engine local")


def _with_ray(file: Path | Config | None, texts: list[str], out: Path, phones: int) -> None:
    """Run on Flower's simulation engine."""
    assert not isinstance(file, Config)  # refused before the folder is made
    from fedcaptor.simulations.ray_engine import simulate_ray

    simulate_ray(file, texts, out, phones)


def with_progress(
    config: Config, out: Path, console: Console, command: str, workers: int | None = None
) -> dict[str, Any]:
    """Run in this process, with progress on `console`; returns the summary."""
    with shown_on(console, STEPS) as on_progress:
        summary: dict[str, Any] = run_here(config, out, on_progress, command=command, workers=workers)
        return summary


def _scenario(given: str | Path | None) -> Path | None:
    """A file, or where there is none the shipped scenario of that name. Raises ConfigError where there is neither."""
    if given is None or Path(given).exists():
        return None if given is None else Path(given)
    scenarios = asset("simulations/scenarios")
    shipped = scenarios / Path(given).with_suffix(".toml").name
    if Path(given).name == str(given) and shipped.exists():
        return shipped
    known = ", ".join(sorted(file.stem for file in scenarios.glob("*.toml")))
    raise ConfigError(f"{given} does not exist: correct the path, or give a shipped scenario, one of {known}")


def _default(file: Path | Config | None, texts: list[str], sweep: bool) -> Path:
    """A folder that this configuration alone has; for a sweep whatever the seed."""
    config = load_config(file, [*texts, "run.seed=0"] if sweep else texts)
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]
    name = file.stem if isinstance(file, Path) else "simulation"
    return Path("runs") / f"{name}-{'sweep-' if sweep else ''}{digest}"


def _read(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise StateError(f"{path.parent} is not a folder: give the folder of a finished run")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{path.parent} has no readable {path.name} ({error}): finish the run first") from error
    return found


def _flat(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by dotted name; texts as they are, lists left out."""
    texts = {key: value for key, value in summary.items() if isinstance(value, str)}
    return texts | dict(figures(summary))


def _phones(lists: Mapping[str, list[Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(dict(lists))
    frame.insert(0, "phone", range(len(frame)))
    return frame


def _rounds(folder: Path) -> pd.DataFrame:
    known, true = pd.read_csv(folder / ROUNDS), pd.DataFrame(_read(folder / SUMMARY).get("accuracy_by_round", []))
    return known if true.empty else known.merge(true.set_index("round").add_prefix("accuracy_"), "left", on="round")


def _together(seeds: Iterable[int], of: Callable[[int], pd.DataFrame]) -> pd.DataFrame:
    """Frames of all seeds, one below the other, with a column `seed` in front."""
    return pd.concat([of(seed).assign(seed=seed) for seed in seeds], ignore_index=True).pipe(_seed_first)


def _seed_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["seed", *(column for column in frame.columns if column != "seed")]]
