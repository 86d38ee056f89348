"""docs/configuration.md: every key with its readers."""

from __future__ import annotations

from fedcaptor.common.config import reference_page
from fedcaptor.common.config.schema.sections import all_keys


def test_the_page_has_every_key() -> None:
    page = reference_page()
    for section, key, field in all_keys():
        assert f"[{section}]" in page
        assert f"| `{key}` |" in page
        assert field.description
        assert field.description.endswith(".")
    assert "| `corrections` | `0.0` | simulation |" in page
    assert "| `min_cohort` | `50` | server, phone |" in page
    assert "| `share` | – | server, simulation |" in page
