"""The report in a real browser: it draws, complains of nothing, loads nothing and fits a phone's screen."""

import pytest

from fedcaptor.simulations.report import write_comparison, write_report
from fedcaptor.simulations.report.sweep_page import write_sweep_report
from tests.simulations.test_report import make_hostile, make_run
from tests.simulations.test_sweep import make_sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
PLOTS = ("trade", "rounds", "accuracy", "macs", "download", "scores", "centroids", "kept", "bytes", "seconds")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_and_fits(visit, report, width, scheme):
    page = visit(report, width, scheme)
    sync_api.expect(page.get_by_role("heading", name="small-cnn on embedded")).to_be_visible()
    sync_api.expect(page.get_by_text("91.7 %").first).to_be_visible()
    sync_api.expect(page.get_by_text("sums not encrypted")).to_be_visible()
    for name in PLOTS:
        assert page.locator(f"#plot-{name} svg.main-svg").count() > 0, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for summary in page.locator("summary").all():
        if not summary.evaluate("e => e.parentElement.open"):
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".pic").first.bounding_box()["width"] == 96


# What reaches over an edge: cells and words over that of their scrolled box, texts of a plot over that of the plot.
CLIPPED = """() => {
  const beyond = (part, box) => part.right > box.right + 1 || part.left < box.left - 1;
  const found = [];
  for (const box of document.querySelectorAll(".scroll"))
    if (box.scrollWidth > box.clientWidth + 1) found.push(box.textContent.slice(0, 60));
  for (const plot of document.querySelectorAll(".plot"))
    for (const text of plot.querySelectorAll("svg text"))
      if (text.textContent && beyond(text.getBoundingClientRect(), plot.getBoundingClientRect()))
        found.push(plot.id + ": " + text.textContent);
  return found;
}"""


def test_nothing_is_clipped_on_a_narrow_screen(visit, report, tmp_path):
    make_sweep(tmp_path)
    comparison = write_comparison([report.parent, tmp_path], tmp_path / "comparison.html")
    for path in (report, write_sweep_report(tmp_path), comparison):
        page = visit(path, 390)
        page.evaluate("document.querySelectorAll('details').forEach(details => (details.open = true))")
        assert page.evaluate(CLIPPED) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cell = visit(report, 390).locator("td[data-label='effective MACs']").first
    assert cell.evaluate("e => getComputedStyle(e, '::before').content") == '"effective MACs"'


def test_the_plots_follow_the_colour_scheme(visit, report):
    page = visit(report)
    title = page.locator("#plot-trade .xtitle")
    light = title.evaluate("e => getComputedStyle(e).fill")
    page.emulate_media(color_scheme="dark")
    sync_api.expect(title).not_to_have_css("fill", light)


def test_hostile_names_run_nothing(visit, tmp_path):
    page = visit(write_report(make_hostile(tmp_path)))
    assert page.locator("img").count() == 0
    assert page.locator("#plot-centroids .ytick text").nth(1).text_content() == "<b>bold</b> "


def test_a_bare_run_draws_what_it_has(visit, tmp_path):
    page = visit(write_report(make_run(tmp_path, details={}, atlas=False)), 390)
    assert page.locator("svg.main-svg").count() > 0
    assert page.locator(".missing").count() > 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("width", [1280, 390])
def test_a_sweep_draws_and_fits(visit, tmp_path, width):
    make_sweep(tmp_path)
    page = visit(write_sweep_report(tmp_path), width)
    for name in ("accuracies", "costs", "outside"):
        assert page.locator(f"#plot-{name} svg.main-svg").count() > 0, name
    page.locator("summary").click()
    sync_api.expect(page.get_by_role("link", name="seed 7")).to_have_attribute("href", "seed-7/report.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
