"""The submodel factory beside Torch-Pruning: a row a model."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import table

COLUMNS = (
    "",
    "ours, a second",
    "Torch-Pruning, a second",
    "ratio",
    "without its trace, a second",
    "ratio",
    "copying, a second",
    "peak, MB",
    "of it by making",
    "Torch-Pruning's peak, MB",
    "of it by making",
    "two threads over one",
    "slicing and merging, s",
)
INTRODUCTION = """\
{plans} random plans a model, which keep the same share of every layer for at most {macs:g} of the MACs, on random
weights for images of {size}; all of them made {repetitions} times by both makers by turns, in one thread. The median of
these batches counts. *Torch-Pruning* {torch_pruning} is given the same channels: a deep copy, the copy's dependency
graph, one cut after the other. *Without its trace* the graph is taken as given, though each copy needs its own. Both
networks are compared bit for bit first. *Copying* moves the submodel's tensors, already cut, into memory at hand: a
bound for any maker. Seconds are CPU seconds of the thread; *two threads over one* is by the clock on the wall.

The peak is that of a process of its own which makes all submodels one after another, libraries and base model
included; *of it by making*: what came on top once all was loaded. *Slicing and merging*: one submodel that absorbs what
was cut, from the evidence of {images} images, once that is gathered."""


def render(record: Record) -> Section:
    """One table."""
    size = "×".join(map(str, record.settings["shape"][1:]))
    text = INTRODUCTION.format(**{**record.settings, "size": size})
    return Section("Submodels per second", f"{text}\n\n{table(COLUMNS, map(_line, record.rows))}")


def _line(row: Row) -> list[str]:
    megabytes = (
        f"{row[name] / 1e6:.0f}"
        for name in (
            "peak_rss_bytes",
            "added_rss_bytes",
            "torch_pruning_peak_rss_bytes",
            "torch_pruning_added_rss_bytes",
        )
    )
    return [
        f"{row['model']} ({row['parameters'] / 1e6:.1f} M values, {row['macs_ratio']:.0%} of the MACs)",
        f"{row['ours_per_second']:.0f}",
        f"{row['torch_pruning_per_second']:.1f}",
        f"{row['ratio']:.1f}",
        f"{row['torch_pruning_untraced_per_second']:.1f}",
        f"{row['ratio_untraced']:.1f}",
        f"{row['copying_per_second']:.0f}",
        *megabytes,
        f"{row['ours_threads2_per_second'] / row['ours_threads1_per_second']:.2f}",
        f"{row['merging_seconds']:.1f}",
    ]
