"""Make tables of runs and sweeps for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from fedcaptor._simulation import meanings


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def summary_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate runs side by side, one column each."""
    table = Table("", *summaries, title="FedCAPTOR: what the phones ended with")
    rows: list[tuple[str, Any]] = [
        ("phones / clusters", lambda s: f"{s['phones']} / {s['clusters']}"),
        ("full model, own classes' images", lambda s: _accuracy(s["accuracy"]["full"])),
        ("full model limited to own classes", lambda s: _accuracy(s["accuracy"]["full_limited"])),
        ("cluster submodel", lambda s: _accuracy(s["cluster_only"]["accuracy"])),
        ("personalised submodel alone", lambda s: _accuracy(s["accuracy"].get("submodel"))),
        ("personalised submodel, with escalations", lambda s: _accuracy(s["accuracy"]["personalised"])),
        (
            "MACs (effective, with escalations)",
            lambda s: f"{percent(s['macs_ratio'])} ({percent(s['effective_macs_ratio'])})",
        ),
        ("parameters", lambda s: percent(s["parameters_ratio"])),
        ("energy, modelled", lambda s: percent(s.get("energy_ratio"))),
        ("download, of the full model's file", lambda s: percent(s["download_bytes_ratio"])),
        ("reference images in it", lambda s: _images(s.get("reference_images") or {})),
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
    if any("looks" in s for s in summaries.values()):
        title = "looks: full model as shipped, adapted; with escalations"
        rows.insert(6, (title, lambda s: "\n".join(_look(look) for look in s.get("looks", []))))
    if any(len(s.get("accuracy_by_round", [])) > 1 for s in summaries.values()):
        rows.append(
            (
                "accuracy by round: full model / submodel alone / with escalations",
                lambda s: "\n".join(_round(each) for each in s.get("accuracy_by_round", [])),
            )
        )
    for title, show in rows:
        table.add_row(title, *(show(s) for s in summaries.values()))
    marks = dict.fromkeys(mark for s in summaries.values() for mark in s["marks"])
    table.caption = "\n".join(["accuracies: mean over phones (5th percentile)", *meanings(marks)])
    return table


def sweep_table(name: str, sweep: Mapping[str, Any]) -> Table:
    """Tabulate headline figures of a sweep, each as mean and interval over the seeds."""
    table = Table("", "mean", f"{100 * sweep['confidence']:.0f} % interval", title=f"FedCAPTOR: {name}")
    rows = (
        ("full model, own classes' images", "accuracy.full.mean", percent),
        ("full model limited to own classes", "accuracy.full_limited.mean", percent),
        ("cluster submodel", "cluster_only.accuracy.mean", percent),
        ("personalised submodel alone", "accuracy.submodel.mean", percent),
        ("personalised submodel, with escalations", "accuracy.personalised.mean", percent),
        ("MACs", "macs_ratio", percent),
        ("effective MACs, with escalations", "effective_macs_ratio", percent),
        ("parameters", "parameters_ratio", percent),
        ("energy, modelled", "energy_ratio", percent),
        ("download, of the full model's file", "download_bytes_ratio", percent),
        ("out-of-set AUROC", "out_of_set.auroc", _plain),
        ("escalated", "out_of_set.escalated_ratio", percent),
        ("ε", "privacy.epsilon", _plain),
    )
    for title, key, show in rows:
        if found := sweep["metrics"].get(key):
            table.add_row(title, show(found["mean"]), f"{show(found['low'])} … {show(found['high'])}")
    seeds = f"seeds {', '.join(map(str, sweep['seeds']))}; {', '.join(sweep['marks'])}"
    table.caption = "\n".join([seeds, *meanings(sweep["marks"])])
    return table


def _round(each: Mapping[str, Any]) -> str:
    figures = " / ".join(percent(each.get(name)) for name in ("full", "submodel", "personalised"))
    return f"{each['round']}: {figures}"


def _accuracy(spread: dict[str, float | None] | None) -> str:
    return "–" if spread is None else f"{percent(spread['mean'])} ({percent(spread['p5'])})"


def _tier(tier: dict[str, Any]) -> str:
    return f"{tier['name']} ({tier['phones']}): {percent(tier['macs_ratio'])}, {percent(tier['accuracy']['mean'])}"


def _look(look: dict[str, Any]) -> str:
    shipped, full, personalised = (percent(look[name]) for name in ("shipped", "full", "personalised"))
    return f"{look['name']} ({look['phones']}): {shipped}, {full}; {personalised}"


def _images(found: dict[str, Any]) -> str:
    return f"{found['images']}, {found['coding']}" if found.get("images") else "–"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _privacy(privacy: dict[str, Any]) -> str:
    if privacy["epsilon"] is None:
        return "no noise: no guarantee"
    if privacy.get("mode") == "local":
        return f"ε = {privacy['epsilon']:.2f}, δ = 0, for each phone's answer alone, towards the server too"
    said = f"ε = {privacy['epsilon']:.2f}, δ = {privacy['delta']:g}, {privacy['sums']} sums"
    return f"{said}; ε = {privacy['epsilon_server']:.2f} if the server cheats"
