"""The table of runs that the command line prints."""

from __future__ import annotations

import io

from rich.console import Console

from fedcaptor.cli.tables import summary_table

ACCURACY = {"mean": 0.9, "p5": 0.8}
SUMMARY = {
    "phones": 400,
    "clusters": 2,
    "accuracy": {"full": ACCURACY, "full_limited": ACCURACY, "personalised": ACCURACY},
    "cluster_only": {"accuracy": ACCURACY},
    "macs_ratio": 0.3,
    "effective_macs_ratio": 0.4,
    "parameters_ratio": 0.3,
    "download_bytes_ratio": 0.2,
    "storage_ratio": 1.2,
    "out_of_set": {"auroc": 0.9, "escalated_ratio": 0.1},
    "privacy": {"epsilon": None},
    "marks": [],
    "seconds": 9.0,
}


def test_what_adapting_to_a_camera_brought_is_printed() -> None:
    blurred = {"name": "blurred", "phones": 119, "shipped": 0.6875, "full": 0.8364, "personalised": 0.9218}
    out = io.StringIO()
    Console(file=out, width=200).print(summary_table({"mine": {**SUMMARY, "looks": [blurred]}, "older": SUMMARY}))
    assert "blurred (119): 68.8 %, 83.6 %; 92.2 %" in out.getvalue()
    assert "looks" not in "".join(summary_table({"older": SUMMARY}).columns[0].cells)  # type: ignore[arg-type]
