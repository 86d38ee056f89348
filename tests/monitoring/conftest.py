"""Pages of dashboards are looked at as other pages are."""

from tests.browser.conftest import browser, visit

__all__ = ["browser", "visit"]
