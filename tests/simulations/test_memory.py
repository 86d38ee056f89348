import os

from fedcaptor.simulations.runner import keep_memory_flat

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_compiled_kernels_are_bounded_unless_the_user_set_a_bound(monkeypatch):
    monkeypatch.setenv(CAPACITIES[1], "7")
    monkeypatch.setenv(CAPACITIES[0], "0")  # restored afterwards
    monkeypatch.delenv(CAPACITIES[0])
    keep_memory_flat()
    assert 1 <= int(os.environ[CAPACITIES[0]]) <= 64
    assert os.environ[CAPACITIES[1]] == "7"
