"""`fedcaptor simulate`: progress while it runs, a table at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import StateError
from fedcaptor.simulations.runner import remove_run, simulate
from fedcaptor.simulations.seeds import parse_seeds
from fedcaptor.simulations.sweep_folder import folder_of, is_sweep, run_sweep

STEPS = {
    "messages": "phones answer",
    "visualise": "what filters look for",
    "plans": "cluster plans",
    "oracle": "true accuracy",
}


def simulate_with_progress(config: Config, out: Path, console: Console) -> dict[str, Any]:
    """Run in this process; the bars go to `console`, standard error."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}
        shown = time.monotonic()

        def on_progress(phase: str, done: int, total: int) -> None:
            nonlocal shown
            if phase not in tasks or done <= 1:
                if phase in tasks:
                    bars.remove_task(tasks[phase])
                tasks[phase] = bars.add_task(STEPS.get(phase, phase), total=total)
            if done == total or time.monotonic() - shown > 0.1:
                shown = time.monotonic()
                bars.update(tasks[phase], completed=done)

        summary: dict[str, Any] = simulate(config, out, on_progress)
        return summary


def run_scenario(
    scenario: Path | None, overrides: list[str], out: Path, engine: str, fresh: bool, console: Console
) -> dict[str, Any]:
    """Run a scenario with the chosen engine and return its summary."""
    config = load_config(scenario, overrides)
    if is_sweep(out):
        raise StateError(f"{out} holds a sweep: choose another --out, or give --seeds")
    if fresh:
        remove_run(out)
    if engine == "local":
        return simulate_with_progress(config, out, console)
    from fedcaptor.simulations.ray_engine import simulate_ray

    return simulate_ray(scenario, overrides, out, config.population.phones)


def run_seeds(
    scenario: Path | None, overrides: list[str], seeds: str, out: Path, engine: str, fresh: bool, console: Console
) -> dict[str, Any]:
    """Run a scenario under each of `seeds`, which win over `run.seed`, and return the sweep's figures."""
    chosen = {seed: [*overrides, f"run.seed={seed}"] for seed in parse_seeds(seeds)}
    configs = {seed: load_config(scenario, each) for seed, each in chosen.items()}
    if fresh:
        for seed in configs:
            remove_run(folder_of(out, seed))

    def run(seed: int, folder: Path) -> dict[str, Any]:
        console.print(f"seed {seed}: {folder}", highlight=False)
        return run_scenario(scenario, chosen[seed], folder, engine, False, console)

    return run_sweep(out, configs, run)


def read_summary(directory: Path) -> dict[str, Any]:
    """The summary of a finished run."""
    try:
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{directory} has no readable summary.json ({error}): finish the run first") from error
    return summary


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def summary_table(summaries: dict[str, dict[str, Any]]) -> Table:
    """Runs side by side, one column each."""
    table = Table("", *summaries, title="FedCAPTOR: what the phones ended with")
    rows: list[tuple[str, Any]] = [
        ("phones / clusters", lambda s: f"{s['phones']} / {s['clusters']}"),
        ("full model, own classes' images", lambda s: _accuracy(s["accuracy"]["full"])),
        ("full model limited to own classes", lambda s: _accuracy(s["accuracy"]["full_limited"])),
        ("cluster submodel", lambda s: _accuracy(s["cluster_only"]["accuracy"])),
        ("personalised submodel", lambda s: _accuracy(s["accuracy"]["personalised"])),
        ("MACs (with escalations)", lambda s: f"{percent(s['macs_ratio'])} ({percent(s['effective_macs_ratio'])})"),
        ("parameters", lambda s: percent(s["parameters_ratio"])),
        ("download, of the full model's file", lambda s: percent(s["download_bytes_ratio"])),
        ("storage, all that a phone keeps", lambda s: percent(s["storage_ratio"])),
        (
            "out-of-set AUROC / escalated",
            lambda s: f"{_plain(s['out_of_set']['auroc'])} / {percent(s['out_of_set']['escalated_ratio'])}",
        ),
        ("privacy", lambda s: _privacy(s["privacy"])),
        ("marks", lambda s: ", ".join(s["marks"])),
        ("seconds", lambda s: f"{s['seconds']:.0f}"),
    ]
    if any("tiers" in s for s in summaries.values()):
        rows.insert(6, ("tiers: MACs, accuracy", lambda s: "\n".join(_tier(tier) for tier in s.get("tiers", []))))
    for title, show in rows:
        table.add_row(title, *(show(s) for s in summaries.values()))
    table.caption = "accuracies: mean over phones (5th percentile)"
    return table


def sweep_table(name: str, sweep: dict[str, Any]) -> Table:
    """Headline figures of a sweep, each as mean and interval over the seeds."""
    table = Table("", "mean", f"{100 * sweep['confidence']:.0f} % interval", title=f"FedCAPTOR: {name}")
    rows = (
        ("full model, own classes' images", "accuracy.full.mean", percent),
        ("full model limited to own classes", "accuracy.full_limited.mean", percent),
        ("cluster submodel", "cluster_only.accuracy.mean", percent),
        ("personalised submodel", "accuracy.personalised.mean", percent),
        ("MACs", "macs_ratio", percent),
        ("MACs with escalations", "effective_macs_ratio", percent),
        ("parameters", "parameters_ratio", percent),
        ("download, of the full model's file", "download_bytes_ratio", percent),
        ("out-of-set AUROC", "out_of_set.auroc", _plain),
        ("escalated", "out_of_set.escalated_ratio", percent),
        ("ε", "privacy.epsilon", _plain),
    )
    for title, key, show in rows:
        if found := sweep["metrics"].get(key):
            table.add_row(title, show(found["mean"]), f"{show(found['low'])} … {show(found['high'])}")
    table.caption = f"seeds {', '.join(map(str, sweep['seeds']))}; {', '.join(sweep['marks'])}"
    return table


def _accuracy(spread: dict[str, float | None]) -> str:
    return f"{percent(spread['mean'])} ({percent(spread['p5'])})"


def _tier(tier: dict[str, Any]) -> str:
    return f"{tier['name']} ({tier['phones']}): {percent(tier['macs_ratio'])}, {percent(tier['accuracy']['mean'])}"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _privacy(privacy: dict[str, Any]) -> str:
    if privacy["epsilon"] is None:
        return "no noise: no guarantee"
    if privacy.get("mode") == "local":
        return f"ε = {privacy['epsilon']:.2f}, δ = 0, for each phone's answer alone, towards the server too"
    said = f"ε = {privacy['epsilon']:.2f}, δ = {privacy['delta']:g}, {privacy['sums']} sums"
    return f"{said}; ε = {privacy['epsilon_server']:.2f} if the server cheats"
