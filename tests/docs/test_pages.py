"""Pages are true: those made from code are up to date, links lead somewhere, commands on them can be parsed."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedcaptor.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
CODE = re.compile(r"^```[a-z]*\n(.*?)^```", re.M | re.S)
HEADING = re.compile(r"^#+ (.+)$", re.M)


@pytest.mark.parametrize(
    ("page", "command"), [("configuration.md", ["config", "--reference"]), ("messages.md", ["messages"])]
)
def test_pages_made_from_code_are_up_to_date(page, command):
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0
    assert (ROOT / "docs" / page).read_text() == made.stdout, "run `make docs` and commit what it wrote"


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(CODE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", CODE.sub("", (ROOT / page).read_text())):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page} links to {target}"


def commands(page):
    """Lines of code blocks that start with `fedcaptor`, continued lines joined, comments cut off."""
    blocks = "\n".join(CODE.findall((ROOT / page).read_text())).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("fedcaptor ")]


def test_commands_on_the_pages_can_be_parsed():
    group = typer.main.get_command(app)
    found = [words for page in PAGES for words in commands(page)]
    assert {words[1] for words in found} >= {"train", "inspect", "prune", "simulate", "report", "exporter"}
    for words in found:
        assert words[1] in group.commands, words
        group.commands[words[1]].make_context(words[1], words[2:])  # raises a usage error naming the option
