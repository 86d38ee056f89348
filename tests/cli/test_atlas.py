"""`fedcaptor atlas`: a page with each chosen filter once, made of the network alone unless patches are wanted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedcaptor._atlas import atlas_of_files
from fedcaptor._atlas_page import Look
from fedcaptor.cli.main import app
from fedcaptor.common.errors import ConfigError
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def page_of(bars: tuple[Path, Path], tmp_path: Path):
    data, weights = bars

    def make(on_progress=lambda what, done, total: None, **changes) -> str:
        look = Look(**{"filters": 3, "steps": 2, **changes})
        return atlas_of_files(tiny.MODEL, weights, str(data), tmp_path / "atlas.html", look, on_progress).read_text()

    return make


def test_each_filter_is_shown_once_with_what_excites_it(page_of) -> None:
    seen: list[tuple[str, int, int]] = []
    page = page_of(lambda *progress: seen.append(progress), patches=2)
    sections = re.findall(r'<section id="layer-\d+".*?</section>', page, re.DOTALL)
    assert len(sections) == len(re.findall(r'<a href="#layer-\d+">', page)) > 1
    for number, section in enumerate(sections, 1):
        filters = re.findall(r"<b>Filter (\d+)</b>", section)
        assert len(filters) == len(set(filters)) == 3
        assert section.count(f'class="pic s{number}"') == 3
        assert section.count(f'class="pic p{number}"') <= 6
    assert set(re.findall(r'(?:src|href|url)[=(]"(#|data:|[^"]*)', page)) == {"#", "data:"}
    assert "://" not in page
    assert "<script" not in page
    assert {what for what, _, _ in seen} == {"scoring filters", "searching images", "painting"}
    assert all(0 < done <= total for _, done, total in seen)
    assert seen[-1] == ("painting", 2 * len(sections), 2 * len(sections))


def test_without_patches_no_image_is_in_the_page_and_a_seed_repeats_it(page_of) -> None:
    page = page_of(patches=0)
    assert page.count("data:image/png") == page.count("<section")
    assert 'class="pic p' not in page
    assert "Small pictures" not in page
    assert page_of(patches=0) == page
    assert page_of(patches=0, seed=1) != page


def test_layers_are_chosen_by_name(page_of) -> None:
    with pytest.raises(ConfigError, match=r"layer 'attic' is unknown: give some of 0, 3"):
        page_of(layers=("0", "attic"))
    page = page_of(layers=("3",))
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page) == ["3"]


def test_hostile_class_names_stay_text(bars: tuple[Path, Path], tmp_path: Path) -> None:
    data = dict(np.load(bars[0]))
    data["names"] = np.array([f"<script>alert({n})</script>" for n in range(tiny.CLASSES)])
    hostile = tmp_path / "hostile.npz"
    np.savez(hostile, **data)
    look = Look(("0",), steps=1)
    page = atlas_of_files(tiny.MODEL, bars[1], str(hostile), tmp_path / "atlas.html", look).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(0)" in page


def test_the_command_writes_the_page(bars: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = map(str, bars)
    out = tmp_path / "pages" / "atlas.html"
    words = ["atlas", tiny.MODEL, "--weights", weights, "--data", data, "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--layers", "0", "--filters", "2", "--steps", "1"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert str(out) in result.stdout
    assert "in 1 step from noise" in out.read_text()
