"""Two cohorts, one phone's vector differs: everything else that this phone sends is the same to the bit."""

from __future__ import annotations

from fedcaptor.common.secure.messages import MASKING, STEPS
from tests.common.secure_cohort import Cohort, random_vectors, terms

PHONES, VICTIM = 8, 2


def sent(vector: int) -> dict[tuple[int, int], bytes]:
    """All replies by (step, phone), one phone lost behind its vector."""
    vectors = random_vectors(PHONES)
    vectors[VICTIM] = vector
    cohort = Cohort(terms(PHONES, dropout=0.2), vectors)
    cohort.lost = lambda step, node: node == PHONES - 1 and step > MASKING
    replies: dict[tuple[int, int], bytes] = {}
    cohort.on_reply = lambda step, node, data: replies.setdefault((step, node), data)
    cohort.run()
    return replies


def test_replies_are_of_one_size_and_differ_in_one_step() -> None:
    one, other = sent(0), sent(2**16 - 1)
    assert one.keys() == other.keys()
    assert {key: len(reply) for key, reply in one.items()} == {key: len(reply) for key, reply in other.items()}
    assert {key for key in one if one[key] != other[key]} == {(MASKING, VICTIM)}
    assert len({one[step, VICTIM] for step in range(STEPS)}) == STEPS
