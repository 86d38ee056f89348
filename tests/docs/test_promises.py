"""The table of promises names what there is, and every attack."""

from __future__ import annotations

import re

from tests.attacks.table import ROOT, promises


def test_modules_and_tests_of_every_promise_exist() -> None:
    assert len(promises()) > 40
    for promise, modules, tests in promises():
        assert modules, promise
        assert tests, promise
        assert all((ROOT / module).exists() for module in modules), (promise, modules)
        for test in tests:
            path, _, name = test.partition("::")
            pattern = rf"^def {name}\(" if name else r"^ *def test_"
            assert re.search(pattern, (ROOT / path).read_text(), re.M), (promise, test)


def test_every_attack_is_in_the_table() -> None:
    named = {test.partition("::")[0] for _, _, tests in promises() for test in tests}
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "attacks").rglob("test_*.py")}
    assert found
    assert found <= named
