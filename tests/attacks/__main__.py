"""Print every test that the table of promises names: `pytest $(python -m tests.attacks)`."""

from tests.attacks.table import promises

if __name__ == "__main__":
    print(*dict.fromkeys(test for _, _, tests in promises() for test in tests))
