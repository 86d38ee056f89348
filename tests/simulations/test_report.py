"""The report: one page with the run's numbers, nothing from outside, hostile names and damaged files handled."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from fedcaptor.common.errors import StateError
from fedcaptor.simulations.records import ATLAS, DETAILS, PHONES, SUMMARY
from fedcaptor.simulations.report import atlas as atlas_of
from fedcaptor.simulations.report import words as shown
from fedcaptor.simulations.report import write_report
from fedcaptor.simulations.report.filters import choose, families_of, local, sprite_of

CLASSES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHANNELS = {f"features.{number}": width for number, width in enumerate((16, 32, 32, 64, 64, 96, 96, 128))}


def make_summary():
    return {
        "phones": 400,
        "clusters": 4,
        "rounds": 2,
        "seconds": 192.4,
        "model": "small-cnn",
        "data": "embedded",
        "seed": 7,
        "accuracy": {
            "full": {"mean": 0.813, "p5": 0.62},
            "full_limited": {"mean": 0.922, "p5": 0.78},
            "personalised": {"mean": 0.917, "p5": 0.766},
            "submodel": {"mean": 0.9041, "p5": 0.7512},
        },
        "accuracy_by_round": [
            {"round": 1, "full": 0.8312, "submodel": 0.9123, "personalised": 0.9234},
            {"round": 2, "full": 0.813, "submodel": 0.9041, "personalised": 0.917},
        ],
        "macs_ratio": 0.383,
        "effective_macs_ratio": 0.431,
        "parameters_ratio": 0.297,
        "download_bytes_ratio": 0.342,
        "storage_ratio": 0.3,
        "cluster_only": {
            "accuracy": {"mean": 0.896, "p5": 0.71},
            "macs_ratio": 0.46,
            "effective_macs_ratio": 0.49,
            "parameters_ratio": 0.37,
            "download_bytes_ratio": 0.37,
        },
        "out_of_set": {"auroc": 0.871, "escalated_ratio": 0.083, "accuracy": 0.5432},
        "privacy": {
            "epsilon": 2.41,
            "delta": 1e-6,
            "sums": "7 sums of at least 50 phones each",
            "delivery_leak": "Each phone downloads the plans of all clusters, so the server learns nothing from it.",
        },
        "faults": {"dropped": 37, "refused": {"nan": 2, "replayed": 1}, "stalled": 4},
        "peak_rss_bytes": 1_534_000_000,
        "marks": ["sums not encrypted"],
        "provenance": {
            "command": "fedcaptor simulate drift --set 'run.seed=7' --out runs/drift",
            "finished": "2026-03-04T05:06:07+00:00",
            "version": "0.1.0",
        },
        "tiers": [
            {
                "name": "low",
                "share": 0.3,
                "macs": 0.1,
                "bytes": 150_000,
                "phones": 122,
                "macs_ratio": 0.0987,
                "parameters_ratio": 0.0876,
                "accuracy": {"mean": 0.8767, "p5": 0.6543},
            },
            {"name": "high", "share": 0.7, "phones": 278, "macs_ratio": 0.4321, "accuracy": {"mean": None}},
        ],
        "looks": [
            {"name": "sharp", "share": 0.7, "phones": 281, "shipped": 0.9, "full": 0.9, "personalised": 0.95},
            {
                "name": "blurred",
                "share": 0.3,
                "corruptions": ["blur=1.0"],
                "phones": 119,
                "shipped": 0.6875,
                "full": 0.8364,
                "personalised": 0.9218,
            },
        ],
    }


def make_details(phones=400, clusters=4, classes=CLASSES, channels=CHANNELS):
    rng = np.random.default_rng(3)
    full = rng.beta(16, 4, phones)
    limited = np.clip(full + rng.normal(0.11, 0.04, phones), 0, 1)
    macs = np.clip(rng.normal(0.38, 0.06, phones), 0.15, 1)
    own = rng.integers(2, 6, phones)
    accuracy = [*np.clip(limited + rng.normal(-0.005, 0.03, phones), 0, 1).tolist()[:-1], None]
    centroids = rng.dirichlet([0.25] * len(classes), clusters)
    total = sum(channels.values())
    return {
        "class_names": list(classes),
        "phones": {
            "accuracy_full": full.tolist(),
            "accuracy_full_limited": limited.tolist(),
            "accuracy_submodel": np.clip(limited - 0.01, 0, 1).tolist(),
            "accuracy": accuracy,
            "macs_ratio": macs.tolist(),
            "effective_macs_ratio": np.clip(macs + rng.gamma(2, 0.025, phones), 0, 1.2).tolist(),
            "download_bytes": (9e4 + macs * 6e5 + rng.normal(0, 9e3, phones)).tolist(),
            "stored_bytes": (3e5 + macs * 2e5).tolist(),
            "escalated": rng.beta(2, 20, phones).tolist(),
            "classes": own.tolist(),
        },
        "clusters": [
            {
                "cluster": number,
                "phones": phones / clusters + float(rng.normal(0, 3)),
                "centroid": shares.tolist(),
                "classes": np.flatnonzero(shares > 0.04).tolist(),
                "macs_ratio": 0.36 + 0.02 * number,
                "parameters_ratio": 0.28 + 0.02 * number,
                "layers": [
                    {
                        "group": group,
                        "channels": width,
                        "kept": int(width * rng.uniform(0.3, 1)) // 8 * 8 or 8,
                        "share_of_macs": 0.9 * width / total,
                        "next_loss_per_mac": float(10 ** rng.uniform(-10, -7)),
                        "why": "Stops here: the next eight filters would cost more loss per MAC than those of "
                        f"{rng.choice(list(channels))}.",
                    }
                    for group, width in channels.items()
                ],
            }
            for number, shares in enumerate(centroids)
        ],
        "phases": [
            {
                "round": number,
                "phase": phase,
                "seconds": seconds * number,
                "asked": 400,
                "replies": 391 - number,
                "dropped": 7,
                "refused": {"nan": 1} if phase == "scores" else {},
                "bytes_down": down,
                "bytes_up": up,
            }
            for number in (1, 2)
            for phase, seconds, down, up in (
                ("usage-0", 3.1, 210_000, 61_000),
                ("usage-1", 2.9, 330_000, 61_000),
                ("scores", 61.0, 4_100_000, 23_000_000),
                ("deliver", 12.3, 121_000_000, 40_000),
                ("outcome", 0.42, 90_000, 30_000),
            )
        ],
        "rounds": [
            {
                "round": number,
                "phases": 5,
                "asked": 2000,
                "replies": 1950,
                "dropped": 35,
                "refused": 1,
                "bytes_down": 125_700_000,
                "bytes_up": 23_200_000,
                "seconds": 80.0,
                "clusters": clusters,
                "epsilon": 1.234 * number,
                "agreement_cluster": 0.956,
                "agreement": 0.9678,
                "macs": 0.3812,
                "parameters": 0.2934,
                "escalated": 0.0765,
            }
            for number in (1, 2)
        ],
        "scores": {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "inside": [1, 5, 30, 400], "outside": [9, 8, 4, 2]},
        "sums": [
            {"name": f"usage.{n}", "length": 10, "clip": 1.0, "noise_multiplier": 8.5, "rho": 0.0069} for n in range(3)
        ],
    }


def make_atlas(classes=10, channels=CHANNELS, side=32, colours=3):
    rng = np.random.default_rng(5)
    yy, xx = np.mgrid[:side, :side]
    tensors = {}
    for group, width in channels.items():
        angle = rng.uniform(0, math.pi, (width, 1, 1, 1))
        pitch = rng.uniform(0.2, 1.1, (width, 1, 1, 1))
        phase = rng.uniform(0, 6, (width, 1, 1, colours))
        waves = np.sin(pitch * (xx[None, ..., None] * np.cos(angle) + yy[None, ..., None] * np.sin(angle)) + phase)
        tensors[f"picture.{group}"] = ((waves + 1) * 127).astype(np.uint8)
        tensors[f"profile.{group}"] = rng.dirichlet([0.3] * classes, width).astype(np.float32)
        tensors[f"cluster.{group}"] = rng.integers(0, 5, width)
    return tensors


def make_run(directory, summary=None, details=None, atlas=True):
    """A run directory as a simulation leaves it."""
    (directory / SUMMARY).write_text(json.dumps(make_summary() if summary is None else summary))
    details = make_details() if details is None else details
    (directory / DETAILS).write_text(json.dumps(details))
    if atlas is True:
        atlas = make_atlas(len(details["class_names"]))
    if atlas:
        safetensors.numpy.save_file(atlas, directory / ATLAS)
    return directory


def body(path):
    """The page without Plotly's own text, no-break spaces as spaces."""
    page = path.read_text(encoding="utf-8").replace("\u00a0", " ")
    return re.sub(r"<script>/\*\*\n\* plotly.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_holds_the_runs_numbers(tmp_path):
    path = write_report(make_run(tmp_path))
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 15_000_000
    page = body(path)
    for text in (
        "small-cnn on embedded", "400 phones, 4 clusters, 2 rounds, 3 min 12 s, seed 7", "1.53 GB",
        "91.7 %", "81.3 %", "92.2 %", "38.3 %", "43.1 %", "29.7 %", "34.2 %", "89.6 %", "0.871", "8.3 %",
        "ε = 2.41", "δ = 1e-06", "7 sums of at least 50 phones", "the server learns nothing",
        "sums not encrypted", "refused: replayed", "Stops here:", "usage-1", "121 MB", "features.7: 32 of 128 filters",
        "data:image/png;base64,", "than</th>", "airplane", "54.3 %", "plot-scores", "1.23", "2.47", "95.6 %", "96.8 %",
        "stored on the phone", f"{tmp_path.name}: small-cnn", "90.4 %", "75.1 %",
        "<code>fedcaptor simulate drift --set &#39;run.seed=7&#39; --out runs/drift</code>",
        "finished 2026-03-04 05:06 UTC", "fedcaptor 0.1.0", "83.1 %", "91.2 %", "92.3 %", "150 kB", "87.7 %", "43.2 %",
        "sums not encrypted<span>: the server sees each phone", 'href="rounds.csv"',
    ):  # fmt: skip
        assert text in page, text
    for gone in ('class="missing">The run', "noise off", "Noise is off", "phones.csv"):
        assert gone not in page
    drawn = drawings(page)
    assert drawn["trade"]["layout"]["xaxis"]["title"]["text"] == "effective MACs (full model: 100%)"
    assert [trace["y"] for trace in drawn["rounds"]["traces"]] == [[0.8312, 0.813], [0.9123, 0.9041], [0.9234, 0.917]]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([SUMMARY, DETAILS, ATLAS, "report.html"])


def drawings(page):
    """What the page's plots draw, by id."""
    found = re.findall(r'id="drawings">(.*?)</script>', page, re.DOTALL)[0]
    return {drawing["id"]: drawing for drawing in json.loads(found)}


def test_the_page_links_to_the_phones_where_they_are(tmp_path):
    (make_run(tmp_path) / PHONES).write_text("phone\n0\n")
    assert '<a href="phones.csv">' in body(write_report(tmp_path))


def test_a_file_of_an_older_version_makes_a_page(tmp_path):
    """It has no submodel's accuracy, no round's, no origin, and shares of MACs that overlap."""
    summary, details = make_summary(), make_details()
    for key in ("provenance", "accuracy_by_round", "tiers", "looks"):
        del summary[key]
    del summary["accuracy"]["submodel"], details["phones"]["accuracy_submodel"]
    for layer in details["clusters"][0]["layers"]:
        layer["share_of_macs"] *= 1.8
    page = body(write_report(make_run(tmp_path, summary, details)))
    assert "own submodel alone" not in page
    assert page.count("all others") == len(details["clusters"]) - 1


def test_shares_of_macs_sum_to_the_whole(tmp_path):
    page = body(write_report(make_run(tmp_path)))
    tables = re.findall(r'aria-label="Layers of cluster.*?</table>', page, re.DOTALL)
    cells = [re.findall(r'data-label="share of MACs">([0-9.]+) %', table) for table in tables]
    assert [len(each) for each in cells] == [len(CHANNELS) + 1] * 4
    assert all(sum(map(float, each)) == pytest.approx(100, abs=0.5) for each in cells)  # each is rounded


def test_what_adapting_to_a_camera_brought_is_shown(tmp_path):
    page = body(write_report(make_run(tmp_path)))
    row = re.findall(r'<th data-label="camera" scope="row">blurred \(blur=1.0\)</th>.*?</tr>', page, re.DOTALL)[0]
    assert re.findall(r'">([0-9.]+)', row) == ["30", "119", "68.8", "83.6", "92.2"]


def test_every_cell_names_its_column(tmp_path):
    page = body(write_report(make_run(tmp_path)))
    row = re.findall(r'<tr><th data-label="model" scope="row">full model</th>.*?</tr>', page, re.DOTALL)[0]
    names = ["accuracy", "5th percentile", "MACs", "effective MACs", "parameters", "download"]
    assert re.findall(r'<td data-label="([^"]+)"', row) == names
    assert not re.findall(r'<td(?! data-label="[^"]+")', page)


def test_the_page_loads_nothing(tmp_path):
    page = body(write_report(make_run(tmp_path)))
    assert re.findall(r"""(?:src|href|action|url\()\s*=?\s*["']?(?!#|data:)([a-z]+:|//)[^"'\s>]*""", page) == []
    assert "default-src 'none'" in page
    assert "'unsafe-inline' '" not in page
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/=]{44}'", page)) == 2


def test_the_same_run_gives_the_same_page(tmp_path):
    first = write_report(make_run(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"


def make_hostile(directory):
    """A run whose every text is hostile."""
    summary, details = (
        make_summary(),
        make_details(classes=(HOSTILE, "<b>bold</b>", "a", "a", "$x$", "&amp;", *CLASSES[:4])),
    )
    atlas = make_atlas()
    summary["provenance"] = {"command": HOSTILE, "finished": HOSTILE, "version": HOSTILE}
    summary["tiers"][0]["name"] = summary["looks"][0]["name"] = HOSTILE
    summary["looks"][1]["corruptions"] = [HOSTILE]
    summary |= {"model": HOSTILE, "data": HOSTILE, "marks": [HOSTILE], "faults": {HOSTILE: HOSTILE}}
    summary["privacy"] |= {"sums": {HOSTILE: [HOSTILE]}, "delivery_leak": HOSTILE}
    for cluster in details["clusters"]:
        cluster["classes"] = [0, HOSTILE, 999, -1]
        for layer in cluster["layers"]:
            layer |= {"why": HOSTILE, "group": HOSTILE + layer["group"]}
    for phase in details["phases"]:
        phase |= {"phase": HOSTILE, "refused": {HOSTILE: 1}}
    details["sums"][0]["name"] = HOSTILE
    atlas = {f"{kind}.{HOSTILE}{group}": value for key, value in atlas.items() for kind, group in [key.split(".", 1)]}
    return make_run(directory, summary, details, atlas)


def test_hostile_names_stay_text(tmp_path):
    page = body(write_report(make_hostile(tmp_path)))
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "onerror=alert(2)&gt;" in page
    assert "<b>bold" not in page
    assert "49" not in re.findall(r"<title>.*?</title>", page)[0]
    ticks = drawings(page)["centroids"]["layout"]["yaxis"]["ticktext"]
    assert ticks[1] == "&lt;b&gt;bold&lt;/b&gt; "
    assert ticks[2] == ticks[3] == "a "
    assert ticks[5] == "&amp;amp; "
    assert not any("<" in tick for tick in ticks)


def test_what_a_run_lacks_is_said(tmp_path):
    summary = {
        key: make_summary()[key] for key in ("phones", "clusters", "rounds", "model", "data", "seed", "macs_ratio")
    }
    summary["accuracy"] = {key: {"mean": None, "p5": None} for key in ("full", "full_limited", "personalised")}
    page = body(write_report(make_run(tmp_path, summary, {"class_names": [], "later": 1}, atlas=False)))
    for what in (
        "did not compare", "did not measure", "no numbers of single phones", "no clusters", "no plans",
        "no filter atlas", "no phases", "no privacy account", "no account of faults",
    ):  # fmt: skip
        assert what in page, what
    assert 'class="marks"' not in page


@pytest.mark.slow
def test_noise_off_is_a_mark(tmp_path):
    summary = make_summary()
    summary["privacy"]["epsilon"] = None
    page = body(write_report(make_run(tmp_path, summary)))
    assert "<li>noise off<span>: nothing is private</span></li>" in page
    assert "gives no privacy guarantee" in page
    assert "ε = " not in page
    summary["marks"] = ["noise off (asked for)"]
    assert "<ul><li>noise off (asked for)</li></ul>" in body(write_report(make_run(tmp_path, summary)))


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    summary, details = make_summary(), make_details()
    summary["accuracy"]["full"]["p5"] = math.nan
    summary["seconds"] = math.inf
    details["phones"]["accuracy"] = [math.nan] * 400
    page = body(write_report(make_run(tmp_path, summary, details)))
    assert not re.search(r"\b(NaN|nan|Infinity|inf) ?(%|s|B|,|\])", page)


@pytest.mark.slow
def test_a_large_fleet_and_model_stay_a_small_page(tmp_path):
    classes = tuple(f"class {n}" for n in range(200))
    channels = {f"stage.{n}.conv": 40 for n in range(70)}
    details = make_details(phones=30_000, clusters=32, classes=classes, channels=channels)
    details["phases"] *= 100
    rng = np.random.default_rng(0)
    atlas = make_atlas(len(classes), channels, side=8)
    atlas["picture.stage.0.conv"] = rng.integers(0, 256, (40, 96, 96, 3), dtype=np.uint8)
    path = write_report(make_run(tmp_path, None, details, atlas))
    assert path.stat().st_size < 15_000_000
    page = body(path)
    assert "Left out to keep the page small: stage.64.conv, " in page
    assert "the 60 with the largest shares" in page
    assert "the last 300 of 1,000" in page


@pytest.mark.parametrize("groups", [0, 1])
def test_pictures_over_the_bound_are_left_out(tmp_path, monkeypatch, groups):
    atlas = make_atlas()
    sprite = sprite_of(atlas["picture.features.0"])
    monkeypatch.setattr(atlas_of, "MAX_SPRITES", sprite.png_bytes * groups)
    page = body(write_report(make_run(tmp_path, atlas=atlas)))
    assert page.count("data:image/png") == groups
    assert f"Left out to keep the page small: features.{groups}, " in page
    assert "no filter atlas" not in page


def png_of(sprite):
    data = base64.b64decode(sprite.url.removeprefix("data:image/png;base64,"))
    assert len(data) == sprite.png_bytes
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("colours", "mode"), [(1, "L"), (3, "RGB"), (2, "L")])
def test_sprites_hold_the_pictures(colours, mode):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 6, 8, colours), dtype=np.uint8)
    sprite = sprite_of(pictures)
    sheet = png_of(sprite)
    assert (sheet.size, sheet.mode) == ((40, 6), mode)
    assert (sprite.count, sprite.width, sprite.height) == (5, 8, 6)
    if colours != 2:
        found = np.asarray(sheet).reshape(6, 5, 8, colours).transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(found, pictures)


def test_filters_are_chosen_from_every_family():
    family = np.array([0] * 90 + [1] * 8 + [2] * 2)
    shares = np.random.default_rng(0).dirichlet([0.3] * 10, 100)
    chosen = choose(shares, family, 32)
    assert len(chosen) == len(set(chosen)) == 32
    assert np.bincount(family[chosen]).tolist() == [22, 8, 2]
    assert (np.diff(family[chosen]) >= 0).all()
    assert shares.argmax(0).size == 10
    clearest = np.argsort(-shares[:90].max(1))[:22]
    assert set(chosen[:22]) == set(clearest)


def test_large_pictures_are_shrunk_and_shown_with_pixels_of_one_size():
    large = sprite_of(np.zeros((2, 100, 200, 3), np.uint8), 50)
    assert png_of(large).size == (100, 25)
    assert [large.shown(wanted) for wanted in (49, 50, 128)] == [50, 50, 100]


def test_families_are_numbered_within_their_layer_and_say_what_they_want():
    family = local(np.array([7, 4, 7, 9]))
    assert family.tolist() == [1, 0, 1, 2]
    shares = np.array([[0.2, 0.8, 0], [1, 0, 0], [0.4, 0.2, 0.4], [0, 0, 0]])
    found = families_of(family, shares, lambda index: "abc"[index])
    assert [(each.number, each.filters, each.classes) for each in found] == [
        (0, 1, ["a"]),
        (1, 2, ["b", "a"]),
        (2, 1, []),
    ]


@pytest.mark.parametrize("name", [SUMMARY, DETAILS])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\x00", b'{"phones": "many", "clusters": [{}]}'])
def test_missing_and_damaged_files_are_named(tmp_path, name, content):
    make_run(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    remedy = "is missing; run" if content is None else r"is damaged \(.*run the simulation again"
    with pytest.raises(StateError, match=rf"{re.escape(name)} {remedy}"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["phones"]["accuracy"].pop(),
        lambda d: d["clusters"][0]["centroid"].pop(),
        lambda d: d["clusters"][0]["layers"][0].update(channels=0),
        lambda d: d["scores"]["inside"].pop(),
    ],
)
def test_details_that_contradict_themselves_are_damage(tmp_path, change):
    details = make_details()
    change(details)
    with pytest.raises(StateError, match=r"details\.json is damaged"):
        write_report(make_run(tmp_path, details=details))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a | {"picture.features.0": a["picture.features.0"].astype(np.float32)},
        lambda a: a | {"picture.features.0": a["picture.features.0"][0]},
        lambda a: a | {"profile.features.0": a["profile.features.0"][:-1]},
        lambda a: a | {"cluster.features.0": a["cluster.features.0"][:-1]},
        lambda a: a | {"picture.features.0": a["picture.features.0"][:0]},
    ],
)
def test_an_atlas_that_does_not_fit_is_damage(tmp_path, change):
    atlas = {key: np.ascontiguousarray(value) for key, value in change(make_atlas()).items()}
    with pytest.raises(StateError, match=r"atlas\.safetensors is damaged \(group features\.0"):
        write_report(make_run(tmp_path, atlas=atlas))


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_cut_atlas_is_damage(tmp_path, keep):
    make_run(tmp_path)
    (tmp_path / ATLAS).write_bytes((tmp_path / ATLAS).read_bytes()[:keep])
    with pytest.raises(StateError, match=r"atlas\.safetensors is damaged"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (123_456, "123 kB"),
        (1.5e9, "1.5 GB"),
        (4e12, "4000 GB"),
        (None, "–"),
    ],
)
def test_sizes(value, words):
    assert shown.size(value).replace("\u00a0", " ") == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.42, "0.42 s"), (12, "12 s"), (59.9, "1 min 00 s"), (192, "3 min 12 s"), (7260, "2 h 01 min"), (None, "–")],
)
def test_durations(value, words):
    assert shown.duration(value) == words
