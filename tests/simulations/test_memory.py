"""The process's peak of memory, and the bound on compiled kernels that keeps it flat."""

import os

import numpy as np
import pytest

from fedcaptor.common.memory import peak_rss
from fedcaptor.simulations.runner import keep_memory_flat

pytestmark = pytest.mark.slow

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_compiled_kernels_are_bounded_unless_the_user_set_a_bound(monkeypatch):
    monkeypatch.setenv(CAPACITIES[1], "7")
    monkeypatch.setenv(CAPACITIES[0], "0")  # restored afterwards
    monkeypatch.delenv(CAPACITIES[0])
    keep_memory_flat()
    assert 1 <= int(os.environ[CAPACITIES[0]]) <= 64
    assert os.environ[CAPACITIES[1]] == "7"


def test_the_peak_stays_when_memory_is_given_back():
    before = peak_rss()
    np.ones(before // 8 + (1 << 22))  # as many bytes again and 32 MiB more, touched and given back
    after = peak_rss()
    assert after > before
    assert peak_rss() >= after
