"""Whole secure sums: exact with phones lost anywhere, and a server that lies gets nothing from honest phones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedcaptor.client.secure_sum.phone_sum import PhoneSum
from fedcaptor.common.errors import PrivacyError, StateError, WireError
from fedcaptor.common.privacy.sums import SumSpec, decode
from fedcaptor.common.secure import keys, messages, shamir
from fedcaptor.common.secure.packing import add_packed
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import plan_topology
from fedcaptor.server.secure_sum.server_sum import ServerSum
from fedcaptor.server.secure_sum.unmask import Unopened, pair_seeds
from tests.common.secure_cohort import Cohort, identity, random_vectors, stream, terms

P_FAIL = 1e-6
ADVERT, CHOICE, SHARES, MASKED, ENDORSEMENT, REVEAL = range(6)


def cohort(phones=8, **options):
    length, bits = options.get("length", 5), options.get("bits", 16)
    return Cohort(terms(phones, **options), random_vectors(phones, length, bits))


@pytest.mark.slow
@settings(max_examples=25)
@given(st.data())
def test_the_sum_is_that_of_the_survivors_whoever_is_lost_when(data):
    phones, bits, length = data.draw(st.integers(5, 14)), data.draw(st.integers(8, 32)), data.draw(st.integers(1, 40))
    sums = cohort(phones, bits=bits, length=length, dropout=0.2, survivors=2)
    allowed = -(-phones // 5)  # what the threshold was planned for
    fate = data.draw(st.dictionaries(st.integers(0, phones - 1), st.integers(CHOICE, REVEAL), max_size=allowed))
    sums.lost = lambda step, node: node in fate and step >= fate[node]
    np.testing.assert_array_equal(sums.run(), sums.sum_of(n for n in range(phones) if fate.get(n, REVEAL) > MASKED))
    assert not sums.declined


def test_a_phone_that_never_answers_is_not_on_the_list():
    sums = cohort(8)
    sums.lost = lambda step, node: node == 3
    np.testing.assert_array_equal(sums.run(), sums.sum_of(n for n in range(8) if n != 3))
    assert sums.server.topology.phones == 7


def test_the_sum_of_encoded_vectors_is_the_plain_one():
    spec = SumSpec("x", 6, 1.0, 100.0, 0.0, cohort=6, min_survivors=4, min_cohort=4, bits=16, small_cohorts=True)
    sums = Cohort(Terms.of(spec, "1" * 64, 0.2, 0.0), np.arange(36).reshape(6, 6) + 2**16 - 20)
    sums.vectors &= 2**16 - 1
    signed = (np.arange(36).reshape(6, 6) - 20).sum(0)
    np.testing.assert_array_equal(decode(sums.run(), spec), signed / 100)


def test_a_sparse_graph_adds_up_too():
    sums = Cohort(terms(24, survivors=12, dropout=0.1), random_vectors(24))
    sums.lost = lambda step, node: step >= MASKED and node in (2, 7)
    np.testing.assert_array_equal(sums.run(), sums.sum_of(n for n in range(24) if n not in (2, 7)))
    assert sums.server.topology.holders < 23
    degrees = [len(sums.server._graph.neighbours(p)[0]) for p in range(24)]
    assert min(degrees) < 23


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ADVERT, "3 phones on the list of keys, must be 6 to 8"),
        (CHOICE, "3 survivors, at least 6 needed"),
        (SHARES, "3 survivors, at least 6 needed"),
        (MASKED, "3 survivors, at least 6 needed"),
        (ENDORSEMENT, r"0 shares of a phone's secret, \d needed: too many phones dropped out"),
        (REVEAL, r"\d shares of a phone's secret, \d needed: too many phones dropped out"),
    ],
)
def test_too_few_phones_end_in_an_error(step, message):
    sums = cohort(8, survivors=6)
    sums.lost = lambda at, node: at >= step and node >= 3
    with pytest.raises(PrivacyError, match=message):
        sums.run()
    with pytest.raises(PrivacyError, match="nothing is unmasked"):
        sums.server.result()


def test_a_single_masked_vector_looks_uniform():
    """Chi-square over all bytes of zeros and of ones, masked; a uniform source fails with P_FAIL."""
    for value in (0, 2**16 - 1):
        sums = Cohort(terms(6, length=20_000, dropout=0.2), np.full((6, 20_000), value, np.uint32)).until(MASKED)
        masked = messages.Masked.from_bytes(sums.ask(2, sums.server.request(2)), sums.server.session).vector
        assert stats.chisquare(np.bincount(masked, minlength=256)).pvalue > P_FAIL


def test_a_phone_forged_as_dropped_keeps_its_vector():
    """The vector of 0 has arrived; the server says it had not, to be shown its mask key. Later it asks for the seed."""
    sums = cohort(8).until(MASKED)
    place = sums.server._place[0]
    late = sums.ask(0, sums.server.request(0))
    sums.lost = lambda step, node: node == 0
    sums.until(REVEAL)
    shown = {}
    sums.on_reply = lambda step, node, data: shown.setdefault(node, messages.Reveal.from_bytes(data, session)) and data
    session = sums.server.session
    sums.until(6)
    assert messages.Masked.from_bytes(late, session).vector.size  # the server holds it
    for node in shown:
        owners, _ = sums.server._held(sums.server._place[node])
        kinds = shown[node].kinds[owners == place]
        assert (kinds == messages.MASK_KEY).all()
        with pytest.raises(PrivacyError, match="step 5 was answered, for another request"):
            sums.ask(node, everybody_survived(sums, node))
        with pytest.raises(PrivacyError, match="step 6 was answered, for another request"):
            sums.ask(node, messages.Endorsements(np.zeros(0, np.uint32), np.zeros((0, 64), np.uint8)).to_bytes(session))


def everybody_survived(sums, node):
    server, place = sums.server, sums.server._place[node]
    owners, slots = server._held(place)
    bits = np.packbits(np.ones(8, np.uint8), bitorder="little")
    return messages.Survivors(bits, server._tokens[owners, slots]).to_bytes(server.session)


def test_the_same_request_gets_the_same_bytes():
    sums = cohort(6)
    requests = {}
    sums.on_request = lambda step, node, data: requests.setdefault((step, node), data)
    replies = {}
    sums.on_reply = lambda step, node, data: replies.setdefault((step, node), data)
    sums.run()
    for (step, node), request in requests.items():
        assert sums.ask(node, request) == replies[step, node]


def test_two_lists_of_survivors_never_both_open():
    """Half of the phones are shown a list without phone 0, half one with all: nobody has t signatures for both."""
    sums = cohort(8, survivors=4).until(ENDORSEMENT)
    server = sums.server
    both = server._list, np.packbits(np.arange(8) != server._place[0], bitorder="little")

    def view(node):
        return both[0] if node < 4 else both[1]

    for node in range(1, 8):
        server._list, server._arrived = view(node), np.unpackbits(view(node), bitorder="little")[:8] == 1
        reply = sums.ask(node, server.request(node))
        signature = messages.Endorsement.from_bytes(reply, server.session).signature[0]
        server._signatures[server._place[node]], server._endorsed[server._place[node]] = signature, True
    for node in range(1, 8):
        holders = server._graph.choices[server._place[node]]
        signed = holders[server._endorsed[holders]]
        request = messages.Endorsements(signed.astype(np.uint32), server._signatures[signed])
        with pytest.raises(PrivacyError, match="holders signed this list of survivors, at least"):
            sums.ask(node, request.to_bytes(server.session))


def test_a_phone_signs_only_a_list_that_has_it_and_enough_others():
    sums = cohort(8, survivors=6).until(ENDORSEMENT)
    server, place = sums.server, sums.server._place[2]
    server._arrived = np.arange(8) != place
    server._list = np.packbits(server._arrived, bitorder="little")
    with pytest.raises(PrivacyError, match="is not among the survivors"):
        sums.ask(2, server.request(2))
    server._arrived = np.arange(8) < 5
    assert server._arrived[place]
    server._list = np.packbits(server._arrived, bitorder="little")
    with pytest.raises(PrivacyError, match="5 survivors, at least 6 needed"):
        sums.ask(2, server.request(2))
    server._list = np.concatenate([server._list, np.zeros(1, np.uint8)])
    with pytest.raises(WireError, match="the list of survivors is cut"):
        sums.ask(2, server.request(2))


def test_a_mask_that_is_left_out_closes_the_seed():
    """The server tells 0 that holder 5 is silent. 5 then never gets 0's token, and does not show 0's share."""
    sums = cohort(8, dropout=0.2)
    sums.until(MASKED)
    server, session = sums.server, sums.server.session
    sender, holder = server._place[0], server._place[5]
    assert holder in server._graph.choices[sender]
    places, _ = server._graph.neighbours(sender)

    def hide(step, node, data):
        if step != MASKED or node != 0:
            return data
        inbox = messages.Inbox.from_bytes(data, session)
        keep = server._held(sender)[0] != holder
        return messages.Inbox(inbox.active * (places != holder).astype(np.uint8), inbox.sealed[keep]).to_bytes(session)

    def forge(step, node, data):  # the token that is missing is made up
        if step != MASKED or node != 0:
            return data
        masked = messages.Masked.from_bytes(data, session)
        at = int(np.flatnonzero(server._graph.choices[sender] == holder)[0])
        return messages.Masked(masked.vector, np.insert(masked.tokens, at, 0, axis=0)).to_bytes(session)

    sums.on_request, sums.on_reply = hide, forge
    sums.until(REVEAL)
    owners, _ = server._held(holder)
    reveal = messages.Reveal.from_bytes(sums.ask(5, server.request(5)), session)
    assert reveal.kinds[owners == sender].tolist() == [messages.NOTHING]
    assert (reveal.kinds[owners != sender] == messages.SEED).all()


def test_an_exchanged_key_is_noticed():
    """A server in the middle puts its own key in place of phone 1's: for one neighbour, or on the whole list."""
    sums = cohort(6).until(SHARES)
    place = sums.server._place[1]
    mine = np.frombuffer(keys.public_of(b"m" * 32), np.uint8)
    changed = sums.server._keys.copy()
    changed[place, 64:96] = mine
    sums.server._keys = changed
    node = next(n for n in range(6) if place in sums.server._graph.choices.get(sums.server._place[n], []))
    with pytest.raises(PrivacyError, match="a neighbour's key is not the one on the list"):
        sums.ask(node, sums.server.request(node))

    sums = cohort(6).until(ADVERT)
    for node in range(6):
        sums.server.add(node, sums.ask(node, sums.server.request(node)))
    advert = sums.server._adverts[1]
    sums.server._adverts[1] = advert[:64] + mine.tobytes() + advert[96:]
    sums.server.advance()
    with pytest.raises(PrivacyError, match="the own key is not on the list of keys"):
        sums.ask(1, sums.server.request(1))


def test_phones_that_know_each_other_want_signed_keys():
    """With a register, keys that the server put on the list itself are refused by everyone."""
    known = {keys.identity_of(identity(node)) for node in range(6)}
    sums = Cohort(terms(6, dropout=0.2), random_vectors(6), known.__contains__)
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(6)))
    sums = Cohort(terms(6, dropout=0.2), random_vectors(6), (known - {keys.identity_of(identity(4))}).__contains__)
    with pytest.raises(PrivacyError, match=r"this phone, [0-9a-f]{64}, is not enrolled"):
        sums.ask(4, sums.server.request(4))
    sums.phones[4] = PhoneSum(sums.terms, identity(4))  # takes part all the same
    sums.until(SHARES)
    with pytest.raises(PrivacyError, match="1 survivors, at least 3 needed"):
        sums.run()
    assert {str(e) for e in sums.declined.values()} == {
        "secure sum: a neighbour's key is not signed by an enrolled phone: decline"
    }


@pytest.mark.parametrize("copied", ["a neighbour's", "the phone's own"])
def test_one_identity_is_one_neighbour(copied):
    """One enrolled phone that the server lists at several places would hold the shares, and the masks, of many."""
    sums = Cohort(terms(6, dropout=0.2), random_vectors(6), lambda identity: True).until(ADVERT)
    for node in range(6):
        sums.server.add(node, sums.ask(node, sums.server.request(node)))
    one = {"a neighbour's": 1, "the phone's own": 0}[copied]
    for number in (3, 4, 5):
        again = PhoneSum(sums.terms, identity(one), stream(f"copy {number}"))
        sums.server._adverts[number] = again.answer(messages.Start().to_bytes(sums.terms.binding), list)[-160:]
    sums.server.advance()
    for node in (0, 1, 2):
        sums.server.add(node, sums.ask(node, sums.server.request(node)))
    every = np.arange(6, dtype=np.uint32)
    for node in (3, 4, 5):
        sums.server.add(
            node, messages.Choice(every[every != node][: sums.server.topology.holders]).to_bytes(sums.server.session)
        )
    sums.server.advance()
    with pytest.raises(PrivacyError, match="one identity at two places"):
        sums.ask(0, sums.server.request(0))


def test_nothing_replays_into_another_sum():
    first, second = cohort(6), cohort(6, digest="2e" * 32)
    messages_of = []
    first.on_request = lambda step, node, data: messages_of.append(data) or data
    first.on_reply = lambda step, node, data: messages_of.append(data) or data
    first.run()
    second.until(CHOICE)
    for data in messages_of:
        if messages.kind_of(data) == messages.Roster.KIND:
            with pytest.raises(WireError) as error:
                second.ask(0, data)
            assert error.value.reason == "wrong_digest"
        with pytest.raises(WireError) as error:
            second.server.add(0, data)
        assert error.value.reason in ("wrong_digest", "wrong_kind")
    advert = first.server._adverts[0]
    relabelled = messages.Advert(np.frombuffer(advert, np.uint8)[None]).to_bytes(second.terms.binding)
    fresh = ServerSum(second.terms, range(6))
    with pytest.raises(WireError, match="keys are not signed"):
        fresh.add(0, relabelled)


def test_a_changed_share_on_the_way_is_left_out():
    sums = cohort(8)

    def flip(step, node, data):
        return data[:-1] + bytes([data[-1] ^ 1]) if step == SHARES and node == 2 else data

    sums.on_reply = flip
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(8)))
    assert not sums.declined
    sender = sums.server._place[2]
    assert sums.server._shown[sender].sum() == sums.server.topology.holders - 1


def test_bad_replies_are_counted_by_reason_and_lose_nothing():
    sums = cohort(8)
    reasons = []

    def also_bad(step, node, data):
        others = [
            data[:-1],
            data + b"x",
            b"",
            messages.Choice(np.arange(9, dtype=np.uint32)).to_bytes(data[2:18]),
            messages.Masked(np.zeros(3, np.uint8), np.zeros((0, 16), np.uint8)).to_bytes(data[2:18]),
            messages.Reveal(np.full(7, 3, np.uint8), np.zeros((7, 32), np.uint8)).to_bytes(data[2:18]),
            messages.Endorsement(np.zeros((1, 64), np.uint8)).to_bytes(data[2:18]),
            messages.Shares(np.zeros((1, 32), np.uint8), np.zeros((1, messages.SEALED), np.uint8)).to_bytes(data[2:18]),
            messages.Advert(np.zeros((1, 160), np.uint8)).to_bytes(data[2:18]),
        ]
        for bad in others:
            with pytest.raises(WireError) as error:
                sums.server.add(node, bad)
            reasons.append(error.value.reason)
        return data

    sums.on_reply = also_bad
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(8)))
    assert set(reasons) == {"malformed", "wrong_kind", "wrong_shape", "oversized"}
    with pytest.raises(WireError) as error:
        sums.server.add(99, b"")
    assert error.value.reason == "unknown_node"
    with pytest.raises(WireError) as error:
        sums.server.add(0, b"")
    assert error.value.reason == "replayed"


def named(sums):
    with pytest.raises(Unopened, match="the secrets of 1 phones do not open, by their own fault") as error:
        sums.run()
    return error.value.phones


def dealing(sums, change):
    """Phone 5 sends its shares as `change(message)` makes them."""

    def lie(step, node, data):
        if (step, node) != (SHARES, 5):
            return data
        return change(messages.Shares.from_bytes(data, sums.server.session)).to_bytes(sums.server.session)

    sums.on_reply = lie
    return sums


def corruptible(lost=None):
    """24 phones, of which 2 may be corrupted. Phone 5 is lost from a step on, if any."""
    sums = cohort(24, dropout=0.1, survivors=12, corrupted=0.05)
    sums.lost = lambda step, node: node == 5 and lost is not None and step >= lost
    return sums


def spoiled(message, holders):
    sealed = message.sealed.copy()
    sealed[list(holders)] ^= 1
    return messages.Shares(message.commitment, sealed)


def test_the_author_of_a_false_commitment_is_named():
    sums = corruptible()
    assert named(dealing(sums, lambda message: messages.Shares(message.commitment ^ 1, message.sealed))) == (5,)


@pytest.mark.parametrize("lost", [None, MASKED], ids=["its seed", "its mask key"])
@pytest.mark.parametrize("kind", ["no polynomial", "another secret"])
def test_the_author_of_shares_that_do_not_open_is_named(kind, lost, monkeypatch):
    sums, split, dealer = corruptible(lost), shamir.split, []

    def false(secret, threshold, count, random):
        if dealer != [5]:
            return split(secret, threshold, count, random)
        return split(secret[::-1], *((count, count) if kind == "no polynomial" else (threshold, count)), random)

    def note(step, node, data):
        dealer[:] = [node]
        return data

    monkeypatch.setattr(shamir, "split", false)
    sums.on_request = note
    assert named(sums) == (5,)


@pytest.mark.parametrize("lost", [None, MASKED])
def test_the_author_of_shares_that_no_holder_can_open_is_named(lost):
    sums = dealing(corruptible(lost), lambda message: spoiled(message, range(len(message.sealed))))
    assert named(sums) == (5,)


def test_a_few_shares_that_cannot_be_opened_harm_nobody():
    sums = dealing(corruptible(), lambda message: spoiled(message, range(2)))
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(24)))


@pytest.mark.parametrize("way", ["alters", "withholds"])
@pytest.mark.parametrize("lost", [(), (0, 1, 2, 3)])
def test_an_honest_phone_is_never_blamed_by_its_corrupted_holders(way, lost):
    """Holders 9 and 17 alter the shares of all whom they hold, or show none; with others lost nothing can be opened."""
    sums, refused = corruptible(), []
    sums.lost = lambda step, node: node in lost and step == REVEAL

    def lie(step, node, data):
        if step != REVEAL or node not in (9, 17):
            return data
        message = messages.Reveal.from_bytes(data, sums.server.session)
        if way == "withholds":
            return messages.Reveal(message.kinds * np.uint8(0), message.shares[:0]).to_bytes(sums.server.session)
        with pytest.raises(WireError, match="a share is not the one that was dealt"):
            sums.server.add(node, messages.Reveal(message.kinds, message.shares ^ 1).to_bytes(sums.server.session))
        refused.append(node)
        return None

    sums.on_reply = lie
    if lost:
        with pytest.raises(PrivacyError, match="too many phones dropped out or showed none") as error:
            sums.run()
        assert type(error.value) is PrivacyError
    else:
        np.testing.assert_array_equal(sums.run(), sums.sum_of(range(24)))
    assert refused == ([9, 17] if way == "alters" else [])


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_server_that_is_stopped_goes_on_with_the_same_sum(stop):
    sums = cohort(24, dropout=0.25, survivors=12)
    sums.lost = lambda step, node: node == step  # one in each step
    steps, totals = [[] for _ in range(6)], []
    take = sums.server.add
    sums.server.add = lambda node, data: steps[sums.server.step].append((node, take(node, data)))
    for _ in range(stop):
        sums.step()
        totals.append(sums.server.total)
    assert all(len(kept) < 4 + 18 + 16 * 24 for _, kept in steps[MASKED])  # tokens, no vector
    again = ServerSum(sums.terms, range(24))
    for step in range(stop):
        again.restore(steps[step], totals[step])
    requests = {node: sums.server.request(node) for node in sums.server.waiting} if stop < 6 else {}
    assert {node: again.request(node) for node in requests} == requests
    sums.server = again
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(4, 24)))


def test_enough_replies_leave_a_sum_that_can_be_unmasked():
    sums = cohort(30, dropout=0.2, survivors=20)
    assert sums.server.enough == 24
    sums.lost = lambda step, node: node < 2
    assert sums.until(SHARES).server.enough == 24
    sums.lost = lambda step, node: node < 4
    assert sums.until(MASKED).server.enough == 24
    assert sums.until(ENDORSEMENT).server.enough == 28 - 6
    assert cohort(8, dropout=0.25, survivors=7).server.enough == 7


def test_one_identity_counts_once():
    agreed = terms(4)
    server = ServerSum(agreed, range(4))
    for node in range(2):
        reply = PhoneSum(agreed, identity(0), stream(node)).answer(server.request(node), list)
        if node == 0:
            server.add(node, reply)
        else:
            with pytest.raises(WireError, match="second keys"):
                server.add(node, reply)


def test_keys_of_small_order_are_refused():
    agreed, weak = terms(4), bytes(32)
    text = keys.advert_text(agreed, weak, weak)
    advert = keys.identity_of(identity(0)) + weak + weak + identity(0).sign(text)
    with pytest.raises(WireError, match="of small order"):
        ServerSum(agreed, range(4)).add(
            0, messages.Advert(np.frombuffer(advert, np.uint8)[None]).to_bytes(agreed.binding)
        )


def test_a_killed_phone_goes_on_where_it_was():
    """Every phone is stored and built anew before each message, and asked twice."""
    sums = cohort(6)

    def killed(step, node, data):
        phone = sums.phones[node]
        if phone.answered:
            stored = phone.to_bytes()
            sums.phones[node] = PhoneSum(sums.terms, identity(node), stream(f"{node} {step}"), stored=stored)
            assert sums.phones[node].answered == step
        first = sums.ask(node, data)
        again = PhoneSum(sums.terms, identity(node), stored=sums.phones[node].to_bytes())
        assert again.answer(data, lambda: np.zeros(0)) == first
        return data

    sums.on_request = killed
    np.testing.assert_array_equal(sums.run(), sums.sum_of(range(6)))


def test_a_stored_sum_of_other_terms_or_damaged_is_refused():
    sums = cohort(6).until(SHARES)
    stored = sums.phones[0].to_bytes()
    with pytest.raises(StateError, match="other terms"):
        PhoneSum(terms(6, digest="3d" * 32), identity(0), stored=stored)
    for bad in (b"", stored[:40], stored[:-1]):
        with pytest.raises(StateError, match="damaged"):
            PhoneSum(sums.terms, identity(0), stored=bad)


def test_secrets_end_with_their_use_and_are_never_shown():
    sums = cohort(6).until(MASKED)
    phone = sums.phones[0]
    secrets = phone._state.secrets.copy()
    assert all(row.tobytes() in phone.to_bytes() for row in secrets)
    assert "array" not in repr(phone) + repr(phone._state) + repr(phone._party)
    sums.until(REVEAL)
    assert not any(row.tobytes() in phone.to_bytes() for row in secrets)
    held = phone._state.shares
    assert held.any()
    sums.run()
    assert len(phone._state.shares) == 0


def test_steps_come_in_order():
    sums = cohort(6).until(SHARES)
    fresh = PhoneSum(sums.terms, identity(0), stream("x"))
    with pytest.raises(WireError, match="now is step 1"):
        fresh.answer(sums.server.request(0), list)
    with pytest.raises(WireError, match="kind 255"):
        fresh.answer(b"", list)


def test_a_vector_of_another_sum_is_not_masked():
    sums = cohort(6).until(MASKED)
    request = sums.server.request(0)
    for bad in (np.zeros(4, np.uint32), np.zeros(5, np.int64), np.full(5, 2**16, np.uint32)):
        with pytest.raises(PrivacyError, match="encode it for this sum"):
            sums.phones[0].answer(request, lambda bad=bad: bad)
    sums.server.add(0, sums.ask(0, request))  # nothing was lost by it


def test_a_roster_below_the_promises_is_declined():
    sums = cohort(12, dropout=0.2, survivors=6).until(CHOICE)
    shape = plan_topology(sums.terms, 12)
    roster = messages.Roster.from_bytes(sums.server.request(0), sums.terms.binding)
    for change, message in (
        ({"phones": 5}, "5 phones on the list of keys"),
        ({"threshold": shape.holders // 2}, "is not safe"),
        ({"holders": 12}, "among 12 phones"),
        ({"place": (roster.place + 1) % 12}, "the own key is not on the list"),
    ):
        with pytest.raises(PrivacyError, match=message):
            sums.ask(0, messages.Roster(**{**vars(roster), **change}).to_bytes(sums.terms.binding))


def test_a_neighbour_list_that_lacks_a_holder_is_refused():
    sums = cohort(8).until(SHARES)
    request = messages.Neighbours.from_bytes(sums.server.request(0), sums.server.session)
    for keep, message in (
        (np.arange(len(request.places)) != 0, "differ in length|a holder is missing"),
        (np.arange(len(request.places))[::-1], "not in order"),
    ):
        cut = messages.Neighbours(request.places[keep], request.chose[keep], request.keys[keep], request.proof)
        with pytest.raises(WireError, match=message):
            sums.ask(0, cut.to_bytes(sums.server.session))


def test_masks_of_a_dropped_phone_are_found_from_either_side():
    one, other, session = b"1" * 32, b"2" * 32, b"s" * 32
    (found,) = pair_seeds(one, session, 4, [(2, keys.public_of(other))])
    (back,) = pair_seeds(other, session, 2, [(4, keys.public_of(one))])
    assert (found[0], back[0]) == (2, 4)
    assert found[1] == back[1]


def test_the_server_never_sees_a_vector_while_it_waits():
    """What it has added up so far is masked: none of the partial sums of arrived vectors."""
    sums = cohort(8, length=40)
    sums.until(MASKED)
    for node in range(8):
        sums.server.add(node, sums.ask(node, sums.server.request(node)))
        partial = sums.server._total & np.uint32(2**16 - 1)
        assert (partial != sums.sum_of(range(node + 1))).mean() > 0.9
    alone = np.zeros(40, np.uint32)
    add_packed(alone, messages.Masked.from_bytes(sums.phones[3]._state.replies[3], sums.server.session).vector, 16)
    assert (alone != sums.vectors[3]).mean() > 0.9


def test_fewer_shares_than_the_threshold_do_not_open_a_seed():
    sums = cohort(8).until(6)
    server, place = sums.server, sums.server._place[0]
    t = server.topology.threshold
    parts = server._parts[place, :t]
    assert server._shown[place, :t].all()
    seed = shamir.combine(range(1, t + 1), parts)
    assert keys.seed_commitment(seed, server.session, place) == server._commitments[place].tobytes()
    fewer = shamir.combine(range(1, t), parts[:-1])
    assert keys.seed_commitment(fewer, server.session, place) != server._commitments[place].tobytes()
