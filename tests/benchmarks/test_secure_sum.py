"""The benchmark of secure sums: what is counted, and that a row holds what scripts and the page read."""

import numpy as np
import pytest

from benchmarks import flower_secagg, secure_server
from benchmarks.record import read_record
from benchmarks.results import PAGES
from benchmarks.secure_sum import Phones, SecureSum, serialise_seconds
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.secure.terms import Terms

SETTINGS = SecureSum(phones="20", length=300)


def test_entries_have_as_few_bits_as_the_sum_needs():
    spec = SETTINGS.spec(1000)
    assert (spec.min_survivors, spec.cohort) == (800, 1000)
    with pytest.raises(PrivacyError, match="could wrap around"):
        type(spec)(**{**vars(spec), "bits": spec.bits - 1})
    # one phone's noise has 24 quanta, four times the clip together: the largest sum and 12 deviations fit 18 bits
    assert spec.bits == 19


def test_figures_are_of_phones_that_stayed():
    phones = Phones(0, SETTINGS.spec(10), None, 2, lambda name, done, total: None)
    assert phones.mean({0: 100.0, 1: 100.0, 2: 3.0, 3: 5.0}) == 4.0
    assert phones.answer(3, 1, b"a request") == b""
    assert not np.array_equal(phones.vector(2), phones.vector(3))
    np.testing.assert_array_equal(phones.vector(2), phones.vector(2))


def test_seconds_come_from_the_clock():
    ticks = iter([1.0, 4.0])
    assert serialise_seconds(np.zeros(3, np.uint32), 8, 2, ticks.__next__) == 3.0
    ticks = iter([0.0, 2.0, 7.0])  # two seconds a survivor, five a dropped phone
    assert flower_secagg.server_seconds(flower_secagg.Parameters(5, 16, 3, 2), 4, 2, ticks.__next__) == 4 * 2 + 2 * 5
    ticks = iter([1.0, 9.0])
    assert flower_secagg.phone_seconds(flower_secagg.Parameters(5, 16, 3, 2), ticks.__next__) == 8.0


def test_an_impossible_dropout_is_refused():
    with pytest.raises(ConfigError, match="must lie in"):
        SecureSum(dropout=0.5)


@pytest.mark.slow
def test_the_command_writes_rows_that_the_page_shows(tmp_path):
    file = tmp_path / "secure_sum.json"
    SETTINGS.run(file)
    record = read_record(file)
    (row,) = record.rows
    assert row["exact"] is True
    assert row["expansion"] == pytest.approx(row["upload_bytes"] / (300 * row["bits_per_entry"] / 8), rel=1e-4)
    assert row["upload_bytes"] > 300 * row["bits_per_entry"] / 8
    assert row["threshold"] < row["neighbours"] <= row["masks"] <= 19
    assert row["phone_ms"] > row["serialise_ms"] > 0
    assert row["peak_rss_bytes"] > 1 << 20
    assert {"download_bytes", "flower_phone_ms", "flower_server_seconds", "plain_server_seconds"} <= row.keys()
    text = PAGES["secure_sum"](record).text
    assert "| 20 phones, 300 entries, 20% dropped |" in text
    assert text.count("\n| 20 phones") == 2
    sizes, times = (part.splitlines() for part in text.split("\n\n")[1::2])
    assert len({line.count("|") for line in sizes}) == len({line.count("|") for line in times}) == 1
    assert "timed for 1 phone, one survivor" in text


@pytest.mark.slow
def test_an_error_of_the_phones_ends_the_server():
    def answer(step, node, request):
        raise PrivacyError("declined")

    with pytest.raises(PrivacyError, match="declined"):
        secure_server.serve_in_process(Terms("0" * 64, 3, 8, 4, 4, 4, 0.2, 0.0), 4, answer)
