"""Accuracy against MACs: a table and a chart for each number of classes, and what is not better than peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.charts import Chart, Panel
from benchmarks.pages.pruning_questions import (
    adaptivity,
    adaptivity_chart,
    against_peers,
    calibration_size,
    in_short,
    paper,
)
from benchmarks.pages.pruning_rows import (
    AGNOSTIC,
    NAMES,
    TUNING,
    budgets_of,
    calibration_of,
    draw_of,
    header_of,
    line_of,
    loss_of,
    refuse_twins,
    sizes_of,
    usual_calibration,
)
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured, reach, table

FULL = {
    "accuracy_full": "full model, all its classes",
    "accuracy_full_limited": "full model, needed classes only",
    "accuracy_full_limited_recalibrated": "… and recalibrated",
}
INTRODUCTION = """\
{model}, {outputs:,} classes{seen}; {macs:,} MACs an image.{note}
{train:,} training and {test:,} test images ({data}, {test_data}).
Each draw is a random set of needed classes; all strategies of a draw have the same weights, the same unlabelled
images of the needed classes (images are picked by true class, their labels are not handed over), the same budgets,
MACs counted by one code, channels in multiples of 8, and an output layer of the needed classes alone. *{agnostic}*
sees as many images of every class that has some, at most 1,000 altogether, instead. Accuracy is on all test images of
the needed classes: mean ± standard deviation over draws, in brackets the loss against the full model that answers
among the needed classes only, in points. *Recalibrated*: batch norms measured anew on the calibration images, by one
code for all; charts and comparisons take the higher figure of every strategy but *reconstruct*, which is taken as it
is.
Short tuning, one code for all: distillation of the full model's answers and deep channels, on moved views of up to
{tune_per_class} unlabelled images a class, in bfloat16 where the processor has it, in at most {tune_seconds:g} s (of
CPU with one thread), begun with the better of cut and recalibrated; all but *reconstruct* take
the better of two learning rates, chosen on images held out, and so get twice the time. Torch-Pruning 1.6: global
pruning of the full model limited to the needed classes; its group norm goes without sparse training beforehand.
Differences are paired over draws, and charts show accuracy minus that of the full model on the same needed classes,
for not all strategies were measured on all draws. Threads: {threads}."""

CIFAR = """
The weights were trained for this comparison on a JPEG copy of CIFAR-10 (quality about 75), which also gives all images:
accuracies lie a few points below those published for CIFAR-10 itself."""

HORIZONTAL = "% of the full model's MACs"
VERTICAL = "accuracy over the full model's\non the needed classes, points"

NOTES = {
    "cifar10_train.npz": CIFAR,
    "resnet20": """
Weights of `fedcaptor train --model resnet20 --data cifar10_train.npz`: twelve passes over 45 % of the training images,
a JPEG copy of CIFAR-10 (quality about 75). Its layers are 16 to 64 channels wide: multiples of 8 leave few choices.
""",
    "benchmarks.lite0:efficientnet_lite0": """
Published weights, trained on ImageNet at 224 pixels, in the files that `python -m benchmarks lite0` writes. The images,
a sample of ImageNet at 64 pixels, are scaled to 160 inside the network, where its MACs are counted; it recognises less
in them than in sharp ones, so what counts is the difference between rows.
""",
}
"""What a reader must know of a network, or of a file of images, beyond the figures."""


def render(record: Record) -> Section:
    """Tables, comparisons, a chart for each number of classes and one of what class-adaptivity brings."""
    refuse_twins(record.rows)
    model = record.settings["model"].rpartition(":")[2]  # of an own network, its factory's name
    parts, charts = [_introduction(record.settings, model), *in_short(record)], {}
    slug = "".join(c if c.isalnum() else "-" for c in model)
    usual = usual_calibration(record)
    for size in sizes_of(record):
        rows = [r for r in record.rows if len(r["classes"]) == size and calibration_of(r) == usual]
        if rows:
            parts += _of_size(rows, size, usual[0])
            charts[f"pruning-{slug}-{size}"] = _chart(rows, model, f"{size} of {record.settings['outputs']:,} classes")
    if adaptive := adaptivity_chart(record, model):
        charts[f"pruning-{slug}-adaptivity"] = adaptive
    parts += adaptivity(record) + calibration_size(record) + paper(record)
    return Section(f"Pruning {model}", "\n\n".join(parts), charts)


def _introduction(settings: Mapping[str, Any], model: str) -> str:
    data, test = settings["data"], settings["test"]
    seen = settings.get("outputs_with_images")
    return INTRODUCTION.format(
        **{**settings, "model": model, "data": data["name"], "test": test["images"]},
        train=data["images"],
        test_data=test["name"],
        agnostic=NAMES[AGNOSTIC],
        seen="" if seen is None else f", {seen:,} of them with images, from which the needed ones are drawn",
        note=NOTES.get(settings["model"], NOTES.get(data["name"], "")).rstrip(),
    )


def _of_size(rows: Sequence[Row], size: int, calibration: int) -> list[str]:
    draws = len({draw_of(row) for row in rows})
    parts = [f"### {size} classes", f"Draws: {draws}; {calibration} calibration images a class. {_full(rows)}"]
    for tune, title in TUNING.items():
        tuned = [row for row in rows if row["tune"] == tune]
        if tuned:
            header = header_of(budgets_of(tuned))
            parts += [
                f"**{title}**: accuracy and loss",
                table(header, _lines(tuned, _mean_and_loss)),
                f"{title}: worst draw / lowest class of any draw, %",
                table(header, _lines(tuned, _worst)),
                "\n".join(against_peers(tuned)),
            ]
    return [part for part in parts if part]


def _full(rows: Sequence[Row]) -> str:
    """The full model's figures."""
    once, texts = _once(rows), []
    for figure, name in FULL.items():
        values = [row[figure] for row in once]
        texts.append(f"{name} {Spread.of(values).text(100)} % (worst draw {100 * min(values):.1f})")
    lowest = min(row["accuracy_full_limited_worst_class"] for row in once)
    texts.append(f"lowest class on needed classes only, of any draw, {100 * lowest:.1f} %")
    return f"Test accuracy: {', '.join(texts)}."


def _lines(rows: Sequence[Row], cell: Callable[[Sequence[Row], str], str]) -> list[list[str]]:
    """A line for each strategy, and one more where recalibration was measured without tuning."""
    lines = []
    for strategy, name in NAMES.items():
        of_strategy = [row for row in rows if row["strategy"] == strategy]
        if not of_strategy:
            continue
        again = of_strategy[0]["tune"] == "none" and any(
            r["accuracy"] != r["accuracy_recalibrated"] for r in of_strategy
        )
        for figure, suffix in (("accuracy", ""), ("accuracy_recalibrated", ", recalibrated"))[: 1 + again]:
            cells = [[r for r in of_strategy if r["macs_target"] == macs] for macs in budgets_of(rows)]
            draws = reach(len(found) for found in cells if found)
            lines.append([name + suffix, *(cell(found, figure) if found else "–" for found in cells), draws])
    return lines


def _mean_and_loss(rows: Sequence[Row], figure: str) -> str:
    loss = Spread.of(row["accuracy_full_limited"] - row[figure] for row in rows)
    return f"{Spread.of(row[figure] for row in rows).text(100)} ({loss.text(100)})"


def _worst(rows: Sequence[Row], figure: str) -> str:
    lowest = min(row[f"{figure}_worst_class"] for row in rows)
    return f"{100 * min(row[figure] for row in rows):.1f} / {100 * lowest:.1f}"


def _chart(rows: Sequence[Row], model: str, needed: str) -> Chart:
    """Of differences to the full model on the same classes: strategies were not all measured on the same draws."""
    panels = []
    for tune, name in TUNING.items():
        tuned = [row for row in rows if row["tune"] == tune]
        if not tuned:
            continue
        budgets, lines = budgets_of(tuned), []
        for strategy, label in NAMES.items():
            own = [row for row in tuned if row["strategy"] == strategy]
            if own:
                losses = [measured(-loss_of(row) for row in own if row["macs_target"] == macs) for macs in budgets]
                lines.append(line_of(label, losses))
        for figure, label in list(FULL.items())[:2]:
            level = Spread.of(row[figure] - row["accuracy_full_limited"] for row in _once(tuned))
            lines.append(line_of(label, [level] * len(budgets), reference=True))
        categories = tuple(f"{100 * macs:g}" for macs in budgets)
        panels.append(Panel(f"{needed}: {name.lower()}", HORIZONTAL, VERTICAL, categories, tuple(lines)))
    return Chart(f"{model}, {needed}", tuple(panels))


def _once(rows: Sequence[Row]) -> list[Row]:
    """One row a draw, for what all its rows share."""
    return list({draw_of(row): row for row in rows}.values())
