"""Make pages of the site out of the files that lie above `docs/`, and mend the links between the two."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
}
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, which the documentation's folder does not hold."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text()
        content = f"# Licence\n\n```text\n{text}```\n" if name == "LICENSE" else rebased(text)
        files.append(File.generated(config, page, content=content))
    return files


def rebased(text: str) -> str:
    """The Markdown of a page of the root, with its links as seen from `docs/`."""

    def mended(match: re.Match[str]) -> str:
        target = match[1]
        return "](" + PAGES.get(target, target.removeprefix("docs/"))

    return _LINK.sub(mended, text)
