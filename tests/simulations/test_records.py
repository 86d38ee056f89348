"""The files of a run as records: what is written is read, and a file that is read is written back as it was."""

import json
import math

import pytest
from pydantic import ValidationError

from fedcaptor.common.errors import StateError
from fedcaptor.simulations.records import (
    DETAILS,
    SUMMARY,
    Details,
    Metric,
    Phones,
    Spread,
    Summary,
    Sweep,
    known,
    read,
    write,
)
from tests.simulations.test_report import make_details, make_summary

SUMMARY_OF_A_RUN = """{
 "phones": 100,
 "phones_scored": 98,
 "clusters": 2,
 "rounds": 1,
 "seconds": 296.0,
 "model": "small-cnn",
 "data": "embedded",
 "seed": 0,
 "accuracy": {
  "full": {
   "mean": 0.9110640347660334,
   "p5": 0.8238505747126437
  },
  "full_limited": {
   "mean": 0.9637501406992913,
   "p5": 1.0
  },
  "personalised": {
   "mean": null,
   "p5": null
  },
  "submodel": {
   "mean": 0.9512,
   "p5": null
  },
  "shipped": {
   "mean": 0.91,
   "p5": null
  }
 },
 "expected_accuracy": {
  "full": {
   "mean": 0.9110640347660334,
   "p5": 0.8238505747126437
  },
  "full_limited": {
   "mean": 0.9637501406992913,
   "p5": 1.0
  },
  "personalised": {
   "mean": null,
   "p5": null
  },
  "submodel": {
   "mean": 0.9512,
   "p5": null
  },
  "shipped": {
   "mean": 0.91,
   "p5": null
  }
 },
 "accuracy_by_round": [
  {
   "round": 1,
   "full": 0.9110640347660334,
   "submodel": 0.9512,
   "personalised": null
  }
 ],
 "macs_ratio": 0.24449136450937028,
 "effective_macs_ratio": 0.3296580311760369,
 "parameters_ratio": 0.175801480470359,
 "energy_ratio": 0.2134,
 "download_bytes_ratio": 0.11248760778605423,
 "storage_ratio": 1.2371736093015733,
 "reference_images": {
  "images": 150,
  "coding": "png"
 },
 "cluster_only": {
  "accuracy": {
   "mean": 0.8799698846838645,
   "p5": 0.6170804195804196
  },
  "accuracy_limited": {
   "mean": 0.905076078879585,
   "p5": 0.6542319749216301
  },
  "macs_ratio": 0.2899380389137111,
  "effective_macs_ratio": 0.2899380389137111,
  "parameters_ratio": 0.22381530801540606,
  "download_bytes_ratio": 0.11248760778605423
 },
 "out_of_set": {
  "auroc": 0.963608486378735,
  "escalated_ratio": 0.0851666666666667,
  "accuracy": 0.6882176629517055,
  "abstained_ratio": 0.0
 },
 "privacy": {
  "epsilon": 7.999999999999792,
  "epsilon_server": null,
  "delta": 1e-05,
  "mode": "masked",
  "sums": 5,
  "delivery_leak": "none: every phone fetches all plans \\u2026"
 },
 "faults": {
  "dropped": 3,
  "refused": 1,
  "wrong_shape": 1
 },
 "peak_rss_bytes": 1457500160,
 "marks": [
  "seeded noise"
 ],
 "provenance": {
  "command": "fedcaptor simulate demo --out runs/demo",
  "finished": "2026-03-04T05:06:07+00:00",
  "version": "0.1.0"
 },
 "tiers": [
  {
   "name": "low",
   "share": 1.0,
   "macs": 0.5,
   "bytes": 0,
   "phones": 0,
   "macs_ratio": null,
   "parameters_ratio": null,
   "accuracy": {
    "mean": null,
    "p5": null
   }
  }
 ],
 "looks": [
  {
   "name": "blurred",
   "share": 1.0,
   "corruptions": [
    "blur=1.0"
   ],
   "phones": 0,
   "shipped": null,
   "full": null,
   "personalised": null
  }
 ]
}"""

DETAILS_OF_A_RUN = {
    "class_names": ["ankle boot", "bag"],
    "phones": {
        "accuracy_full": [0.9824561403508771, None],
        "accuracy_full_limited": [1.0, None],
        "accuracy_submodel": [0.9824561403508771, None],
        "accuracy": [1.0, None],
        "macs_ratio": [0.21814197326361218, 1.0],
        "effective_macs_ratio": [0.3014753065969455, None],
        "escalated": [0.08333333333333333, None],
        "stored_bytes": [309008, 0],
        "classes": [2, 1],
        "download_bytes": [150229.0, 150229.0],
        "tier": ["low", "high"],
    },
    "clusters": [
        {
            "cluster": 0,
            "tier": "low",
            "phones": 40.118685664240076,
            "centroid": [0.75, 0.25],
            "classes": [0, 1],
            "macs_ratio": 0.2865274929935621,
            "parameters_ratio": 0.21546646542211745,
            "disagreement": None,
            "layers": [
                {
                    "channels": 32,
                    "group": "features.0",
                    "kept": 24,
                    "next_loss_per_mac": 1.8069907407912635e-07,
                    "next_loss_per_parameter": 3.760090974189134e-05,
                    "share_of_macs": 0.10266558025840997,
                    "share_of_parameters": 0.021407288700739935,
                    "why": "the removed channels cost a loss of 0.0238",
                }
            ],
        }
    ],
    "rounds": [
        {
            "round": 1,
            "phases": 8,
            "asked": 600,
            "replies": 600,
            "dropped": 0,
            "bytes_down": 23702876,
            "bytes_up": 2773000,
            "refused": 0,
            "seconds": 271.0,
            "clusters": 2,
            "epsilon": None,
            "agreement_cluster": 0.9845747919626547,
            "agreement": 1.0,
            "macs": 0.09356606454231783,
            "parameters": 0.25512482240714435,
            "escalated": 0.1286787091536432,
        }
    ],
    "phases": [
        {
            "round": 1,
            "phase": "usage-0",
            "seconds": 15.152649839000048,
            "asked": 100,
            "bytes_down": 1656512,
            "bytes_up": 534300,
            "dropped": 0,
            "refused": {"nan": 1},
            "replies": 99,
        }
    ],
    "sums": [
        {"name": "1-usage-0", "length": 55, "clip": 1.0, "noise_multiplier": 0.0, "rho": None},
        {"name": "1-answers", "length": 10},
    ],
    "scores": {"edges": [-2.25, 0.0, 1.5], "inside": [1, 40], "outside": [9, 2]},
}
"""With `clip` and its like where sums have them, and a sum of local answers, which has none."""

SWEEP = {
    "model": "small-cnn",
    "data": "embedded",
    "seeds": [0, 3],
    "confidence": 0.95,
    "metrics": {"macs_ratio": {"mean": 0.5, "std": None, "low": None, "high": None, "values": [0.5, None]}},
    "marks": ["seeded noise"],
    "provenance": {"command": "", "finished": "2026-03-04T05:06:07+00:00", "version": "0.1.0"},
}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Summary, SUMMARY_OF_A_RUN),
        (Details, json.dumps(DETAILS_OF_A_RUN, indent=1)),
        (Sweep, json.dumps(SWEEP, indent=1)),
    ],
)
def test_a_file_is_written_back_byte_by_byte(tmp_path, kind, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    record = read(path, kind)
    write(path, record)
    assert path.read_text() == text
    assert set(kind.model_fields) == set(json.loads(text)), "the example must have every key"


def test_a_file_of_an_older_version_keeps_its_keys(tmp_path):
    old = make_summary()
    for key in ("provenance", "accuracy_by_round", "tiers"):
        del old[key]
    del old["accuracy"]["submodel"]
    (tmp_path / SUMMARY).write_text(json.dumps(old))
    record = read(tmp_path / SUMMARY, Summary)
    assert record.plain() == old
    assert (record.phones_scored, record.tiers, record.out_of_set.abstained_ratio) == (None, None, None)
    assert (record.provenance, record.accuracy_by_round, record.accuracy.submodel) == (None, (), Spread())
    details = make_details()
    (tmp_path / DETAILS).write_text(json.dumps(details))
    assert read(tmp_path / DETAILS, Details).plain() == details


def test_keys_of_a_newer_version_are_left_out(tmp_path):
    (tmp_path / DETAILS).write_text(json.dumps({"class_names": ["a"], "later": 1}))
    assert read(tmp_path / DETAILS, Details).plain() == {"class_names": ["a"]}


def test_figures_that_are_not_finite_are_unknown(tmp_path):
    write(tmp_path / "spread.json", Spread(mean=math.nan, p5=math.inf))
    assert json.loads((tmp_path / "spread.json").read_text()) == {"mean": None, "p5": None}
    assert known(Phones(accuracy=(0.5, math.nan, 1)).accuracy).tolist() == [0.5, 1.0]


def test_whole_numbers_stay_whole():
    values = Metric(values=(1, 1.0)).plain()["values"]
    assert [type(value) for value in values] == [int, float]


def test_a_record_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Spread(mean=0.5).mean = 0.6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"details\.json is missing"),
        ("{", r"details\.json is damaged"),
        ('{"clusters": [{"cluster": "x"}]}', r"details\.json is damaged \(clusters\.0\.cluster"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / DETAILS).write_text(text)
    with pytest.raises(StateError, match=words):
        read(tmp_path / DETAILS, Details)
