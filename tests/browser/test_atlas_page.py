"""The atlas page in a real browser: it fits, keeps its layers in sight and shows numbers where one points."""

import numpy as np
import pytest

from fedcaptor.simulations.report.atlas_page import Page, write_atlas
from fedcaptor.simulations.report.filters import GroupView, Shown, families_of, local, sprite_of, views

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "a very long name of a class",
)

pytestmark = pytest.mark.slow


def layer(number, filters=9, each=4, window=14):
    rng = np.random.default_rng(number)
    shares, measured = rng.dirichlet([0.3] * 10, filters), rng.dirichlet([0.3] * 10, filters)
    pictures = rng.integers(0, 256, (filters, 32, 32, 3), dtype=np.uint8)
    family = local(np.sort(rng.integers(0, 3, filters)))
    excited = np.full(filters, each)
    excited[0] = 0
    shown = Shown(np.arange(filters) * 7, pictures, shares, family, measured, excited)
    patches = sprite_of(rng.integers(0, 256, (filters * each, window, window, 3), dtype=np.uint8))
    families = families_of(family, measured, CLASSES.__getitem__)
    return GroupView(
        f"stage.{number}", views(shown, CLASSES.__getitem__), families, 500, sprite_of(pictures), patches, each, window
    )


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    layers = tuple(layer(number) for number in range(5))
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    return write_atlas(path, Page("vgg16", "photos", (3, 32, 32), CLASSES, 64, 1000, layers))


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_its_layers_stay_in_sight(visit, atlas, width, scheme):
    page = visit(atlas, width, scheme, drawn=False)
    sync_api.expect(page.get_by_role("heading", name="What vgg16 looks for")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    link = page.get_by_role("link", name="stage.4")
    link.click()
    sync_api.expect(page.get_by_role("heading", name="stage.4")).to_be_in_viewport()
    sync_api.expect(link).to_be_in_viewport()


def test_pictures_have_pixels_of_one_size(visit, atlas):
    page = visit(atlas, drawn=False)
    assert page.locator(".s1").count() == 9
    assert page.locator(".s1").first.bounding_box()["width"] == 4 * 32
    assert page.locator(".p1").count() == 8 * 4
    assert page.locator(".p1").first.bounding_box()["width"] == 4 * 14
    # The second filter's first patch is the fifth of the sheet: those of the first, which nothing excites, are skipped.
    place = page.locator(".p1").first.evaluate("e => getComputedStyle(e).backgroundPositionX")
    assert place.replace("calc", "").strip("()") in ("-224px", "-4 * 56px")


def test_pointing_at_a_filter_shows_all_its_numbers(visit, atlas):
    page = visit(atlas, drawn=False)
    card = page.locator(".filters > li").nth(2)
    numbers = card.locator("ol")
    short = numbers.bounding_box()["height"]
    card.hover()
    assert numbers.bounding_box()["height"] > 1.5 * short
    page.mouse.move(0, 0)
    assert numbers.bounding_box()["height"] == short
    card.focus()
    assert numbers.bounding_box()["height"] > 1.5 * short
