"""The site is built strictly: every page and every link of it resolves, and no page loads anything from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAW = re.compile(r"<p>[^<]*\n(?:- |\| |\d\. )")  # a list or table that was taken for text

pytestmark = pytest.mark.slow


def test_the_site_builds_strictly_and_keeps_to_itself(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert pages.keys() >= {"index.html", "reference.html", "glossary.html", "examples/one-network.html"}
    for name, page in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="(https?:[^"]+)', page)
        loaded += re.findall(r'<link[^>]* rel="?(?:stylesheet|preconnect|icon)"?[^>]* href="(https?:[^"]+)', page)
        assert not loaded, name
        assert not RAW.search(page), name
