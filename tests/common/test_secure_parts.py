"""The parts of secure sums: by hand, by inverse, against slow versions of the same."""

import hashlib
import itertools
import math
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.client.secure_sum.steps import draw_holders
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.secure import keys, messages, shamir
from fedcaptor.common.secure.masks import CHUNK, Masker
from fedcaptor.common.secure.merkle import MerkleTree, leaf, root_of
from fedcaptor.common.secure.packing import add_packed, pack, packed_size
from fedcaptor.common.secure.terms import MAX_COHORT, Terms
from fedcaptor.common.secure.topology import check_topology, plan_topology
from fedcaptor.server.secure_sum.graph import Graph
from tests.common.secure_cohort import stream, terms


def times(a, b):
    """FIPS 197, section 4.2: multiplication in AES's field, bit by bit."""
    result = 0
    while b:
        result ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return result


def test_products_are_those_of_the_aes_field():
    assert times(0x57, 0x83) == 0xC1  # the standard's own examples
    assert times(0x57, 0x13) == 0xFE
    table = shamir._PRODUCT.reshape(256, 256)
    assert all(table[a, b] == times(a, b) for a in range(256) for b in range(256))


@pytest.mark.parametrize(
    ("points", "values", "secret"),  # those of codahale/shamir's GF256Test
    [((1, 2, 3), (1, 2, 3), 0), ((1, 2, 3), (80, 90, 20), 30), ((1, 2, 3), (43, 22, 86), 107)],
)
def test_interpolation_agrees_with_another_library(points, values, secret):
    assert shamir.combine(points, np.array(values, np.uint8)[:, None]) == bytes([secret])


def test_shares_are_values_of_the_polynomial():
    coefficients = bytes([7, 11])  # highest first: 7 x² + 11 x + 5
    shares = shamir.split(bytes([5]), 3, 4, lambda count: coefficients[:count])
    assert shares[:, 0].tolist() == [times(times(7, x) ^ 11, x) ^ 5 for x in (1, 2, 3, 4)]


@settings(max_examples=60)
@given(st.data())
def test_any_threshold_of_shares_restores_the_secret_and_fewer_do_not(data):
    count = data.draw(st.integers(2, 255))
    threshold = data.draw(st.integers(2, count))
    secret = data.draw(st.binary(min_size=16, max_size=40))
    shares = shamir.split(secret, threshold, count, stream("shares"))
    rows = data.draw(st.permutations(range(count)))[:threshold]
    assert shamir.combine([r + 1 for r in rows], shares[rows]) == secret
    assert shamir.combine([r + 1 for r in rows[1:]], shares[rows[1:]]) != secret


@settings(max_examples=200)
@given(bits=st.integers(8, 32), length=st.integers(1, 70), seed=st.integers(0, 99))
def test_packing_is_the_binary_number_of_all_entries(bits, length, seed):
    values = np.random.default_rng(seed).integers(0, 2**32, length, dtype=np.uint32)
    packed = pack(values, bits)
    low = [int(v) % 2**bits for v in values]
    number = sum(v << (i * bits) for i, v in enumerate(low))
    assert packed.tobytes() == number.to_bytes(packed_size(length, bits), "little")
    total = np.full(length, 3, np.uint32)
    add_packed(total, packed, bits)
    assert total.tolist() == [(v + 3) % 2**32 for v in low]


def test_a_mask_is_the_keystream_in_any_chunks():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    seed, length = bytes(range(32)), 2 * CHUNK + 5
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(4 * length))
    total = np.full(length, 9, np.uint32)
    masker = Masker(total)
    masker.add(seed)
    assert (total - np.uint32(9) == np.frombuffer(stream, "<u4")).all()
    masker.subtract(seed)
    assert (total == 9).all()


@settings(max_examples=100)
@given(st.data())
def test_one_proof_serves_several_leaves_and_no_other(data):
    count = data.draw(st.integers(1, 40))
    places = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    leaves = [leaf(bytes([i])) for i in range(count)]
    tree = MerkleTree(leaves)
    proof, chosen = tree.prove(sorted(places)), {p: leaves[p] for p in places}
    assert root_of(count, chosen, proof) == tree.root
    changed = data.draw(st.sampled_from(sorted(places)))
    assert root_of(count, {**chosen, changed: leaf(b"mine")}, proof) != tree.root
    assert root_of(count + 1, chosen, proof) != tree.root
    assert root_of(count, chosen, [*proof, leaves[0]]) is None
    if proof:
        assert root_of(count, chosen, proof[:-1]) is None


def test_merkle_root_of_three_by_hand():
    def h(data):
        return hashlib.sha256(data).digest()

    a, b, c = (leaf(x) for x in (b"a", b"b", b"c"))
    assert MerkleTree([a, b, c]).root == h(b"\2\3\0\0\0" + h(b"\1" + h(b"\1" + h(b"\0a") + h(b"\0b")) + h(b"\0c")))
    assert MerkleTree([a, b, c]).prove([1]) == [a, c]


def brute(n, c, k, t, s):
    """Share of all draws of k from n - 1 others with at least t among the first c + s - 1."""
    draws = list(itertools.combinations(range(n - 1), k))
    return sum(sum(x < c + s - 1 for x in draw) >= t for draw in draws) / len(draws)


def test_the_bound_of_small_sums_against_counting():
    from fedcaptor.common.secure.topology import _least_honest

    n, c, k, t = 12, 1, 6, 5
    total, least = 0.0, None
    for s in range(1, n - c + 1):
        total += math.comb(n - c, s) * brute(n, c, k, t, s) ** s
        if least is None and total > 2.0**-6:
            least = s
    assert least == 8
    assert (n - c) * brute(n, c, k, 2 * t - k, 1) == 0  # condition 2: one corrupted phone never makes four
    assert _least_honest(n, c, k, t, 5) == least


@pytest.mark.parametrize(("phones", "holders"), [(100, 20), (400, 33), (3000, 60)])
def test_the_largest_degree_against_scipys_tail(phones, holders):
    from scipy.stats import binom

    from fedcaptor.common.secure.topology import _max_degree

    chose, share = _max_degree(phones, holders, 20) - holders, holders / (phones - 1)
    assert phones * binom.sf(chose, phones - 1, share) <= 2.0**-20
    assert phones * binom.sf(chose - 1, phones - 1, share) > 2.0**-20
    assert _max_degree(phones, phones - 1, 20) == phones - 1
    assert _max_degree(20, 7, 20) == 19  # all others may choose it more often than that


def test_a_larger_threshold_is_safer_and_a_smaller_one_survives_more():
    shape = plan_topology(terms(200, dropout=0.2, corrupted=0.05), 200)
    assert 2 * shape.threshold > shape.holders
    assert 2 * shape.least_honest > 190
    wanted = terms(200, dropout=0.2, corrupted=0.05)
    assert check_topology(wanted, 200, shape.holders, shape.threshold) == shape
    with pytest.raises(PrivacyError, match="not safe when 5% are corrupted"):
        check_topology(wanted, 200, shape.holders, shape.threshold - 3)
    with pytest.raises(PrivacyError, match="not safe"):
        check_topology(terms(200, dropout=0.2, corrupted=0.3), 200, shape.holders, shape.threshold)
    assert check_topology(wanted, 200, shape.holders, shape.threshold + 3).least_honest > shape.least_honest


def test_holders_are_enough_but_for_the_stated_probability():
    """Condition 1 against scipy's own tail: met with k, and with no smaller k by any threshold that is safe."""
    from scipy.stats import hypergeom

    n, shape = 200, plan_topology(terms(200, dropout=0.1, corrupted=0.05), 200)
    k, t = shape.holders, shape.threshold
    assert n * hypergeom.sf(k - t, n - 1, 20, k) <= 2.0**-20 < n * hypergeom.sf(k - t - 1, n - 1, 20, k)
    assert hypergeom.sf(2 * t - k - 1, n - 1, 10, k) * 190 <= 2.0**-41


def test_five_phones_by_hand():
    """One of them may be lost, none lies. Two holders cannot do: one may be lost, and 1 of 2 would show both secrets.
    Of three, two stay and no one else answers for two. Of two that may be lost, four holders leave two: not a majority.
    """
    shape = plan_topology(terms(5, dropout=0.2), 5)
    assert (shape.holders, shape.threshold, shape.least_honest) == (3, 2, 3)
    with pytest.raises(PrivacyError, match=r"no threshold of at most 4 holders.* 40% dropouts.*lower one of the two"):
        plan_topology(terms(5, dropout=0.4), 5)


def test_a_list_of_the_wrong_length_is_refused():
    with pytest.raises(PrivacyError, match="4 phones on the list of keys, must be 5 to 10"):
        plan_topology(terms(10), 4)
    with pytest.raises(PrivacyError, match="11 phones"):
        check_topology(terms(10), 11, 6, 5)
    with pytest.raises(PrivacyError, match="threshold 7 of 6 holders"):
        check_topology(terms(10), 10, 6, 7)


def test_terms_are_bounded():
    for change in ({"digest": "x"}, {"bits": 7}, {"dropout": 0.6}, {"survivors": 11}, {"length": 0}):
        with pytest.raises(PrivacyError, match="secure sum"):
            terms(10, **change)
    assert terms(10).binding != terms(10, digest="1f" * 32).binding != terms(10, dropout=0.1).binding


def test_holders_are_drawn_evenly_and_never_the_own_place():
    counts, random = np.zeros(7, int), stream("draw")
    for _ in range(3000):
        drawn = draw_holders(random, 7, 3, 4)
        assert (np.diff(drawn.astype(int)) > 0).all()
        counts[drawn] += 1
    assert counts[4] == 0
    # each of six is drawn in half of 3000 cases; the stream is fixed, a fair one passes 5.5 deviations but for 3e-7
    assert (abs(np.delete(counts, 4) - 1500) < 5.5 * math.sqrt(750)).all()


def test_the_largest_list_of_keys_costs_a_phone_little_memory():
    """The server says how many phones, holders and shares there are; a phone checks them all the same."""
    agreed = Terms("0f" * 32, 5, 16, MAX_COHORT, 20, 20, 0.1, 0.05)
    tracemalloc.start()
    try:
        check_topology(agreed, MAX_COHORT, 255, 156)
        draw_holders(os.urandom, MAX_COHORT, 255, 7)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_graph_by_hand():
    graph = Graph(4, {0: np.array([1, 2], np.uint32), 2: np.array([0, 3], np.uint32), 3: np.array([0, 1], np.uint32)})
    assert [part.tolist() for part in graph.chosen_by(0)] == [[2, 3], [0, 0]]
    assert [part.tolist() for part in graph.chosen_by(1)] == [[0, 3], [0, 1]]
    assert [part.tolist() for part in graph.neighbours(0)] == [[1, 2, 3], [False, True, True]]
    assert [part.tolist() for part in graph.neighbours(2)] == [[0, 3], [True, False]]


KINDS = messages.Message.__subclasses__()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_messages_have_an_exact_layout(kind):
    rng, tag = np.random.default_rng(1), bytes(range(32))
    values = {
        name: 7
        if entry is None
        else rng.integers(0, 200, (3, entry.width) if entry.width > 1 else 3).astype(entry.dtype)
        for name, entry in messages.layout(kind).items()
    }
    data = kind(**values).to_bytes(tag)
    again = kind.from_bytes(data, tag)
    assert again.to_bytes(tag) == data
    assert all(np.array_equal(getattr(again, name), value) for name, value in values.items())
    for bad, reason in (
        (b"\1" + data[1:], "wrong_version"),
        (data[:1] + b"\x63" + data[2:], "wrong_kind"),
        (data[:2] + b"other sum" + data[11:], "wrong_digest"),
        (data + b"\0", "oversized"),
        (data[:10], "malformed"),
    ):
        with pytest.raises(WireError) as error:
            kind.from_bytes(bad, tag)
        assert error.value.reason == reason
    if values:
        with pytest.raises(WireError):
            kind.from_bytes(data[:-1], tag)


def test_a_claimed_length_takes_no_memory():
    data = messages.Choice(np.zeros(1, np.uint32)).to_bytes(bytes(16))
    with pytest.raises(WireError) as error:
        messages.Choice.from_bytes(data[:18] + b"\xff\xff\xff\xff" + data[22:], bytes(16))
    assert error.value.reason == "wrong_shape"


def test_derived_keys_differ_by_purpose_pair_direction_and_sum():
    secret, one, other = bytes(32), b"a" * 32, b"b" * 32
    derived = [
        keys.mask_seed(secret, one, 1, 2),
        keys.mask_seed(secret, other, 1, 2),
        keys.mask_seed(secret, one, 1, 3),
        *keys.share_key(secret, one, 1, 2),
        *keys.share_key(secret, one, 2, 1),
        keys.self_seed(secret, one, 1),
        keys.seed_commitment(secret, one, 1),
    ]
    assert len(set(derived)) == len(derived)
    assert keys.mask_seed(secret, one, 2, 1) == derived[0]  # the one that both phones have
