"""Take a phone's steps, each from (state, request) to (next state, reply).

Each checks all that it is told; none has a side effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from hmac import compare_digest
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedcaptor.client.secure_sum.state import PhoneState
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.secure import keys, messages, shamir
from fedcaptor.common.secure.masks import Masker
from fedcaptor.common.secure.merkle import leaf, root_of
from fedcaptor.common.secure.packing import pack
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import check_topology

Random = Callable[[int], bytes]
Values = Callable[[], NDArray[np.uint32]]


@dataclass(frozen=True, eq=False, repr=False)
class Party:
    """Name the phone that takes part; `PhoneSum` explains the fields."""

    terms: Terms
    identity: Ed25519PrivateKey
    random: Random
    enrolled: Callable[[bytes], bool] | None


Step = tuple[PhoneState, bytes]


def advertise(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Draw the secrets of this sum and sign their public keys."""
    messages.Start.from_bytes(data, party.terms.binding)
    own = keys.identity_of(party.identity)
    if party.enrolled and not party.enrolled(own):
        raise PrivacyError(
            f"secure sum: this phone, {own.hex()}, is not enrolled: decline, have the operator enroll it"
        )
    channel, mask, seed = (party.random(32) for _ in range(3))
    public = keys.public_of(channel), keys.public_of(mask)
    signature = party.identity.sign(keys.advert_text(party.terms, *public))
    advert = b"".join((own, *public, signature))
    reply = messages.Advert(_rows([advert], 160)).to_bytes(party.terms.binding)
    return replace(state, secrets=_rows([channel, mask, seed], 32)), reply


def choose(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Check the list of keys for the own one, then draw holders from it."""
    roster = messages.Roster.from_bytes(data, party.terms.binding)
    topology = check_topology(party.terms, roster.phones, roster.holders, roster.threshold)
    own = messages.Advert.from_bytes(state.replies[0], party.terms.binding).keys.tobytes()
    root = roster.root.tobytes()
    _expect(len(root) == 32 and roster.place < roster.phones, "the list of keys has no root, or not the own place")
    if root_of(roster.phones, {roster.place: leaf(own)}, _each(roster.proof)) != root:
        raise PrivacyError("secure sum: the own key is not on the list of keys (Merkle proof): decline, tell the owner")
    session = keys.session_of(party.terms, roster.phones, roster.holders, roster.threshold, root)
    holders = draw_holders(party.random, roster.phones, roster.holders, roster.place)
    shape = (roster.phones, roster.holders, roster.threshold, roster.place, topology.max_degree)
    state = replace(
        state,
        shape=np.array(shape, np.uint32),
        root=_flat(root),
        session=_flat(session),
        holders=holders,
    )
    return state, messages.Choice(holders).to_bytes(session)


def draw_holders(random: Random, phones: int, count: int, place: int) -> NDArray[np.uint32]:
    """Draw `count` places other than the own one, uniformly without replacement, in order: the least of 64-bit lots."""
    lots = np.frombuffer(random(8 * (phones - 1)), "<u8")
    drawn = np.sort(np.argsort(lots, kind="stable")[:count])
    return (drawn + (drawn >= place)).astype(np.uint32)


def share(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Check the neighbours' keys; seal a share of both secrets for each holder."""
    session, (_, count, threshold, place, _) = state.session.tobytes(), state.shape.tolist()
    request = messages.Neighbours.from_bytes(data, session)
    is_holder = _check_neighbours(party, state, request)
    channel, mask, seed = _each(state.secrets)
    parts = shamir.split(seed + mask, threshold, count, party.random)
    agreement, number = keys.Agreement(channel), iter(parts)
    sealed, tokens, opening, expected = [], [], [], []
    for row, (other, public) in enumerate(zip(request.places.tolist(), _each(request.keys[:, 32:64]), strict=True)):
        secret = _agree(agreement, public)
        if is_holder[row]:
            key, token = keys.share_key(secret, session, place, other)
            part = next(number).tobytes()
            sealed.append(keys.seal(key, part) + _marks(session, place, other, part))
            tokens.append(token)
        if request.chose[row]:
            key, token = keys.share_key(secret, session, other, place)
            opening.append(key)
            expected.append(token)
    commitment = keys.seed_commitment(seed, session, place)
    state = replace(
        state,
        identities=request.keys[is_holder, :32],
        tokens=_rows(tokens, 16),
        places=request.places,
        chose=request.chose,
        masks=request.keys[:, 64:96],
        opening=_rows(opening, 32),
        expected=_rows(expected, 16),
    )
    return state, messages.Shares(_rows([commitment], 32), _rows(sealed, messages.SEALED)).to_bytes(session)


def _check_neighbours(party: Party, state: PhoneState, request: messages.Neighbours) -> NDArray[np.bool_]:
    """Return which neighbours are holders; raises unless all keys are those on the committed list."""
    phones, count, _, place, most = state.shape.tolist()
    places = request.places
    _expect(len(request.keys) == len(request.chose) == len(places) >= count, "lists of neighbours differ in length")
    _expect(bool((np.diff(places.astype(np.int64)) > 0).all()), "places of neighbours are not in order")
    _expect(int(places[-1]) < phones and place not in places, "a neighbour is not another phone on the list of keys")
    is_holder = np.isin(places, state.holders)
    _expect(int(is_holder.sum()) == count, "a holder is missing among the neighbours")
    _expect(bool((is_holder | (request.chose != 0)).all()), "a neighbour neither holds nor chose")
    if len(places) > most:
        raise PrivacyError(f"secure sum: {len(places)} neighbours, at most {most} are expected: decline")
    adverts = _each(request.keys)
    leaves = {p: leaf(a) for p, a in zip(places.tolist(), adverts, strict=True)}
    if root_of(phones, leaves, _each(request.proof)) != state.root.tobytes():
        raise PrivacyError("secure sum: a neighbour's key is not the one on the list (Merkle proof): decline")
    if len({keys.identity_of(party.identity), *(advert[:32] for advert in adverts)}) <= len(adverts):
        raise PrivacyError("secure sum: one identity at two places on the list of keys: decline")
    if party.enrolled and not all(keys.sound_advert(party.terms, a) and party.enrolled(a[:32]) for a in adverts):
        raise PrivacyError("secure sum: a neighbour's key is not signed by an enrolled phone: decline")
    return is_holder


def mask(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Mask the vector, and open the shares that arrived; one that is no good is left out and stops nothing."""
    session, threshold = state.session.tobytes(), int(state.shape[2])
    request = messages.Inbox.from_bytes(data, session)
    _expect(len(request.active) == len(state.places), "not every neighbour is said to be active or not")
    active = request.active == 1
    reached = active[np.isin(state.places, state.holders)]
    if reached.sum() < threshold:
        raise PrivacyError(f"secure sum: {reached.sum()} active holders, at least {threshold} needed: decline")
    sends = active & (state.chose != 0)
    sent = active[state.chose != 0]  # the same, among those who chose this phone
    _expect(len(request.sealed) == sends.sum(), "there is not one sealed share for each phone that chose this one")
    held, place = state.places[sends], int(state.shape[3])
    rows = zip(held.tolist(), _each(state.opening[sent]), _each(request.sealed), strict=True)
    opened = [_opened(session, owner, place, key, sealed) for owner, key, sealed in rows]
    vector = pack(_masked(party.terms, state, active, values()), party.terms.bits)
    arrived: dict[str, Any] = {
        "held": held,
        "sound": np.array([part is not None for part in opened], np.uint8),
        "shares": _rows([part or bytes(messages.SHARES) for part in opened], messages.SHARES),
        "due": state.expected[sent],
    }
    spent: dict[str, Any] = {
        name: PhoneState.empty(name) for name in ("secrets", "masks", "opening", "tokens", "expected")
    }
    return replace(state, **arrived, **spent), messages.Masked(vector, state.tokens[reached]).to_bytes(session)


def _marks(session: bytes, owner: int, holder: int, shares: bytes) -> bytes:
    seed, mask_key = shares[:32], shares[32:]
    return b"".join(
        keys.share_mark(session, owner, holder, kind, share)
        for kind, share in ((messages.SEED, seed), (messages.MASK_KEY, mask_key))
    )


def _opened(session: bytes, owner: int, holder: int, key: bytes, sealed: bytes) -> bytes | None:
    """Return the shares, None where they cannot be opened or are not those that the owner left marks of."""
    end = len(sealed) - 2 * messages.MARK
    shares = keys.unseal(key, sealed[:end])
    return shares if shares and _marks(session, owner, holder, shares) == sealed[end:] else None


def _masked(
    terms: Terms, state: PhoneState, active: NDArray[np.bool_], values: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Return the vector with the own mask and one for each active neighbour, modulo 2**32."""
    if values.dtype != np.uint32 or values.shape != (terms.length,) or int(values.max()) >> terms.bits:
        raise PrivacyError(
            f"secure sum: the vector is {values.dtype} {values.shape}, must be uint32 ({terms.length},) below "
            f"2**{terms.bits}: encode it for this sum"
        )
    session, place, total = state.session.tobytes(), int(state.shape[3]), values.copy()
    _, private, seed = _each(state.secrets)
    masker, agreement, others = Masker(total), keys.Agreement(private), state.places[active].tolist()
    secrets = [_agree(agreement, public) for public in _each(state.masks[active])]
    masker.add(keys.self_seed(seed, session, place))
    for other, secret in zip(others, secrets, strict=True):
        (masker.add if place < other else masker.subtract)(keys.mask_seed(secret, session, place, other))
    return total


def endorse(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Sign the one list of survivors that this phone will ever act on, and settle what it shows of whom."""
    session, (phones, _, _, place, _) = state.session.tobytes(), state.shape.tolist()
    request = messages.Survivors.from_bytes(data, session)
    bits = np.unpackbits(request.survivors, bitorder="little")
    _expect(len(request.survivors) == (phones + 7) // 8 and not bits[phones:].any(), "the list of survivors is cut")
    party.terms.require_survivors(int(bits.sum()))
    if not bits[place]:
        raise PrivacyError("secure sum: this phone sent its vector and is not among the survivors: decline")
    arrived = bits[state.held] == 1
    _expect(len(request.tokens) == arrived.sum(), "there is not one token for each survivor that chose this phone")
    kinds = np.full(len(state.held), messages.MASK_KEY, np.uint8)
    included = [compare_digest(a, b) for a, b in zip(_each(state.due[arrived]), _each(request.tokens), strict=True)]
    kinds[arrived] = np.where(included, messages.SEED, messages.NOTHING)
    kinds[state.sound == 0] = messages.NOTHING
    text = keys.survivors_text(session, request.survivors.tobytes())
    reply = messages.Endorsement(_rows([party.identity.sign(text)], 64)).to_bytes(session)
    return replace(state, survivors=request.survivors, kinds=kinds), reply


def reveal(party: Party, state: PhoneState, data: bytes, values: Values) -> Step:
    """Show one share of each held phone, if t holders of the own secrets signed the very list that this phone did."""
    session, threshold = state.session.tobytes(), int(state.shape[2])
    request = messages.Endorsements.from_bytes(data, session)
    places = request.places
    _expect(len(places) == len(request.signatures), "there is not one signature for each holder")
    _expect(bool((np.diff(places.astype(np.int64)) > 0).all()), "places of holders are not in order")
    _expect(bool(np.isin(places, state.holders).all()), "a signature is not a holder's")
    text = keys.survivors_text(session, state.survivors.tobytes())
    identities = _each(state.identities[np.searchsorted(state.holders, places)])
    valid = 0
    for identity, signature in zip(identities, _each(request.signatures), strict=True):
        valid += valid < threshold and keys.signed(identity, signature, text)
    if valid < threshold:
        raise PrivacyError(
            f"secure sum: {valid} holders signed this list of survivors, at least {threshold} needed: decline"
        )
    shown = state.kinds != messages.NOTHING
    both = state.shares.reshape(-1, 2, 32)
    parts = both[np.flatnonzero(shown), state.kinds[shown] - 1]
    return replace(state, shares=PhoneState.empty("shares")), messages.Reveal(state.kinds, parts).to_bytes(session)


def _agree(agreement: keys.Agreement, public: bytes) -> bytes:
    try:
        return agreement.secret(public)
    except ValueError:
        raise PrivacyError("secure sum: a neighbour's public key is of small order: decline") from None


def _expect(holds: bool, detail: str) -> None:
    if not holds:
        raise WireError("malformed", f"secure sum: {detail}")


def _each(rows: NDArray[np.uint8]) -> list[bytes]:
    """Return each row as bytes."""
    data, width = rows.tobytes(), rows.shape[1]
    return [data[i : i + width] for i in range(0, len(data), width)]


def _rows(parts: list[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, width)


def _flat(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
