"""Fuzzing: what others send may be refused by a declared error, and do nothing else.

Each module of `tests.fuzz.targets` is one target. `seeds()` makes valid inputs, `one(data)` takes any bytes: it lets no
error through but a bug, and tells whether the input was accepted. `python -m tests.fuzz wire --seconds 60` looks for
bugs in one target, guided by coverage (atheris, the extra `attack`). `corpus/` has inputs to start from, written by
`python -m tests.fuzz --write-corpus`, and those that once found a bug; `test_corpus.py` replays them all.
"""
