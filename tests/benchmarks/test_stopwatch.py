"""The stopwatch changes no answer and counts each message once."""

from types import SimpleNamespace

import pytest

from benchmarks.stopwatch import Stopwatch


def message(kind):
    return SimpleNamespace(metadata=SimpleNamespace(message_type=kind))


def test_each_message_counts_for_its_type():
    watch = Stopwatch()
    app = watch.around(lambda asked, context: (asked, context))
    asked = message("query.sum")
    assert app(asked, "context") == (asked, "context")
    app(message("query.deliver"), "context")
    app(message("query.sum"), "context")
    assert {kind: len(seconds) for kind, seconds in watch.seconds.items()} == {"query.sum": 2, "query.deliver": 1}


def test_seconds_are_shared_out_over_phones():
    watch = Stopwatch({"query.sum": [1.0, 2.0, 3.0], "query.deliver": []})
    assert watch.each("query.sum", 2) == 3.0
    assert watch.each("query.deliver", 2) == 0.0


def test_a_failing_phone_still_fails():
    def fails(asked, context):
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        Stopwatch().around(fails)(message("query.sum"), "context")
