"""Who reads a key, as declared beside it, is what the code of server, phone and simulation reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedcaptor.common.config import Config, Reader
from fedcaptor.common.config.schema.base import readers
from fedcaptor.common.config.schema.sections import all_keys, is_list, keys_of, section_of

ROOT = Path(__file__).parents[3]
PACKAGES = {
    Reader.server: "server",
    Reader.phone: "client",
    Reader.simulation: "simulations",
    Reader.deployment: "deploy",
}
PROPERTIES = {
    "privacy.noiseless": ("privacy.dishonest", "privacy.corrupted", "privacy.sums"),
    "privacy.spent_delta": ("privacy.sums", "privacy.delta"),
    "privacy.require_protected": ("privacy.sums",),
}
SECTIONS = [name for name in Config.model_fields if not is_list(name)]  # of lists, keys are read off loop variables
ONLY_SIMULATED = "simulated_phone"  # function of client/app.py that stands in for a device's configuration

DECLARED = {f"{section}.{key}": readers(field) for section, key, field in all_keys()}


def _sections_of(tree: ast.Module) -> dict[str, str]:
    """Section by the name that its class has in the module."""
    of_class = {section_of(name).__name__: name for name in SECTIONS}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedcaptor.common.config"):
            found |= {
                alias.asname or alias.name: of_class[alias.name] for alias in node.names if alias.name in of_class
            }
    return found


def _section(node: ast.AST, names: dict[str, str]) -> str | None:
    """The section that an expression is: `….config.planner`, or a name that is known to be one."""
    if isinstance(node, ast.Attribute) and node.attr in SECTIONS:
        whole = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        return node.attr if re.search("config|settings", whole) else None  # not `summary.privacy`
    return names.get(node.id) if isinstance(node, ast.Name) else None


def _names(function: ast.FunctionDef, of_class: dict[str, str]) -> dict[str, str]:
    """Section of each parameter and local name that is one."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    names = {
        argument.arg: of_class[argument.annotation.id]
        for argument in arguments
        if isinstance(argument.annotation, ast.Name) and argument.annotation.id in of_class
    }
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]  # type: ignore[attr-defined]
            for name, value in pairs:
                section = _section(value, {})
                if isinstance(name, ast.Name) and section:
                    names[name.id] = section
    return names


def reads(source: str) -> Iterator[str]:
    """`section.key` of every read that the source shows."""
    tree = ast.parse(source)
    of_class = _sections_of(tree)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name == ONLY_SIMULATED:
            continue
        names = _names(function, of_class)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and (section := _section(node.value, names)):
                read = f"{section}.{node.attr}"
                if node.attr in keys_of(section) or read in PROPERTIES:
                    yield from PROPERTIES.get(read, (read,))


@pytest.mark.parametrize("reader", sorted(set(Reader) - {Reader.deployment}))  # that one hands all keys on
def test_what_a_package_reads_is_declared(reader: Reader) -> None:
    files = sorted((ROOT / PACKAGES[reader]).rglob("*.py"))
    found = {read for file in files for read in reads(file.read_text())}
    assert len(found) > 10
    assert {read for read in found if reader not in DECLARED[read]} == set()


@pytest.mark.parametrize("reader", Reader)
def test_what_is_declared_is_named_in_the_package(reader: Reader) -> None:
    """By the key's name as an attribute, there or in what both sides run in `common/`; rough, but a key that nobody
    reads any longer is seen.
    """
    folders = [ROOT / PACKAGES[reader], ROOT / "common"]
    files = [file for folder in folders for file in folder.rglob("*.py") if "config" not in file.parts]
    files += (ROOT / PACKAGES[reader]).glob("templates/*")
    named = set(re.findall(r"\.(\w+)", "".join(file.read_text() for file in files)))
    named |= (
        {"malformed", "silence", "stall", "stall_seconds"} if reader == Reader.simulation else set()
    )  # **model_dump
    properties = {key for name, keys in PROPERTIES.items() if name.partition(".")[2] in named for key in keys}
    marks = {"privacy.sums", "privacy.noise", "testing.small_cohorts"} if "marks" in named else set()
    missing = (
        {key for key, declared in DECLARED.items() if reader in declared and key.partition(".")[2] not in named}
        - properties
        - marks
    )
    assert missing == set()


def test_every_key_has_a_reader() -> None:
    assert [key for key, declared in DECLARED.items() if not declared] == []


def test_the_scan_sees_what_it_should() -> None:
    source = """
from fedcaptor.common.config import Config, Usage as Settings
class Phone:
    def one(self, settings: Settings) -> None:
        print(settings.drift, self.config.planner.macs, self.config.own_tier)
        privacy, other = self._config.privacy, 3
        print(privacy.noiseless, other.drift, summary.privacy.epsilon)
    def simulated_phone(self, config: Config) -> None:
        print(config.run.seed)
"""
    found = {"usage.drift", "planner.macs", "privacy.dishonest", "privacy.corrupted", "privacy.sums"}
    assert set(reads(source)) == found
