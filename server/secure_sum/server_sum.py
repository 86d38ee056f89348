"""Run the server's side of one secure sum: it keeps one accumulator, and of each phone what the next step needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.secure import keys, messages, shamir
from fedcaptor.common.secure.masks import Masker
from fedcaptor.common.secure.merkle import MerkleTree, leaf
from fedcaptor.common.secure.messages import MASK_KEY, MASKING, NOTHING, SEALED, SEED, STEPS
from fedcaptor.common.secure.packing import add_packed, packed_size
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import Topology, most_corrupted, plan_topology
from fedcaptor.server.secure_sum.graph import Graph
from fedcaptor.server.secure_sum.unmask import Unopened, pair_seeds


class ServerSum:
    """Drive the six steps of a sum. In each, call `request(node)` for every node in `waiting`, `add(node, reply)` as
    replies come, then `advance()`, which takes those for dropped that did not answer; after the sixth, `result()`.

    `nodes`: whom to ask, any integers. A reply that does not pass raises WireError with a reason and changes nothing.
    """

    topology: Topology
    session: bytes

    def __init__(self, terms: Terms, nodes: Sequence[int], enrolled: Callable[[bytes], bool] | None = None) -> None:
        self.terms, self.step, self._enrolled = terms, 0, enrolled
        self.waiting = set(nodes)
        self._asked = frozenset(nodes)
        self._adverts: dict[int, bytes] = {}
        self._identities: set[bytes] = set()
        self._choices: dict[int, NDArray[np.uint32]] = {}
        self._total = np.zeros(terms.length, np.uint32)
        self._unmasked = False

    def request(self, node: int) -> bytes:
        """Return the current step's message to a node of `waiting`."""
        if self.step == 0:
            return messages.Start().to_bytes(self.terms.binding)
        make = (self._roster, self._neighbours, self._inbox, self._survivors, self._endorsements)[self.step - 1]
        return make(self._place[node]).to_bytes(self.terms.binding if self.step == 1 else self.session)

    @property
    def enough(self) -> int:
        """Return the replies from which on the current step, now begun, may be closed: all but the share `dropout`.

        That is of all asked in the first step, and never fewer than a sum is published for, while vectors may still be
        lost; afterwards, when each phone on the list of keys needs enough holders, of these.
        """
        before = self.step <= MASKING
        phones = len(self._asked) if before else self.topology.phones
        most = phones - math.ceil(self.terms.dropout * phones)
        return min(max(most, self.terms.fewest) if before else most, len(self.waiting))

    @property
    def total(self) -> NDArray[np.uint32]:
        """Return a copy of the accumulator [length]: all vectors so far, masked until the last step is over."""
        return self._total.copy()

    def add(self, node: int, data: bytes) -> bytes:
        """Take a reply. Returns what `restore` needs of it: all but a vector, which is in `total`.

        Raises WireError with the reason when it is refused; the node may then answer again.
        """
        if node not in self._asked:
            raise WireError("unknown_node", "a reply of a phone that this secure sum did not ask")
        if node not in self.waiting or self.step == STEPS:
            raise WireError("replayed", "a second or late reply to a secure sum")
        if self.step == 0:
            self._take_advert(node, data)
        else:
            take = (self._take_choice, self._take_shares, self._take_masked, self._take_endorsement, self._take_reveal)
            take[self.step - 1](self._place[node], data)
        self.waiting.discard(node)
        if self.step != MASKING:
            return data
        tokens = messages.Masked.from_bytes(data, self.session).tokens
        return messages.Masked(np.zeros(0, np.uint8), tokens).to_bytes(self.session)

    def restore(self, replies: Iterable[tuple[int, bytes]], total: NDArray[np.uint32]) -> None:
        """Take again, in their order, what `add` returned in a step that was over, then `advance`.

        `total`: the accumulator at the end of that step. Raises WireError on replies of another sum, and what `advance`
        raises.
        """
        for node, kept in replies:
            if self.step == MASKING:
                self._take_tokens(self._place[node], messages.Masked.from_bytes(kept, self.session))
                self.waiting.discard(node)
            else:
                self.add(node, kept)
        if self.step == MASKING:
            self._total[:] = total
        self.advance()

    def advance(self) -> None:
        """Go on to the next step with those who answered. Raises PrivacyError when they are too few, or when secrets do
        not open: `Unopened` if it is certain whose fault that is.
        """
        close = (self._commit, self._link, self._list_active, self._list_survivors, self._list_endorsed, self._finish)
        close[self.step]()
        self.step += 1

    def result(self) -> NDArray[np.uint32]:
        """Return the sum of all survivors' vectors modulo 2**bits, uint32 [length].

        Raises PrivacyError before the last step is over.
        """
        if not self._unmasked:
            raise PrivacyError(f"secure sum: step {self.step + 1} of {STEPS} is not over, so nothing is unmasked")
        return self._total

    @property
    def survivors(self) -> int:
        """Return how many phones' vectors are in the sum, once all vectors are in."""
        return int(self._arrived.sum())

    @property
    def mean_degree(self) -> float:
        """Return how many masks a phone has in common with others on average, before any is lost."""
        return float(np.mean([len(self._graph.neighbours(place)[0]) for place in self._choices]))

    def _take_advert(self, node: int, data: bytes) -> None:
        rows = messages.Advert.from_bytes(data, self.terms.binding).keys
        _expect(len(rows) == 1, "not one set of keys")
        advert = rows.tobytes()
        _expect(
            keys.sound_advert(self.terms, advert) and keys.usable_advert(advert),
            "keys are not signed, or of small order",
        )
        if self._enrolled and not self._enrolled(advert[:32]):
            raise WireError("unknown_node", "a secure sum's keys are of an identity that is not enrolled")
        if advert[:32] in self._identities:
            raise WireError("replayed", "an identity's second keys for one secure sum")
        self._identities.add(advert[:32])
        self._adverts[node] = advert

    def _commit(self) -> None:
        self.topology = plan_topology(self.terms, len(self._adverts))
        n, k, t = self.topology.phones, self.topology.holders, self.topology.threshold
        self._nodes = list(self._adverts)
        self._place = {node: place for place, node in enumerate(self._nodes)}
        self._keys = np.frombuffer(b"".join(self._adverts.values()), np.uint8).reshape(n, 160)
        self._tree = MerkleTree([leaf(advert) for advert in self._adverts.values()])
        self.session = keys.session_of(self.terms, n, k, t, self._tree.root)
        self.waiting = set(self._nodes)

    def _roster(self, place: int) -> messages.Message:
        shape = self.topology
        root, proof = (np.frombuffer(b"".join(h), np.uint8) for h in ([self._tree.root], self._tree.prove([place])))
        return messages.Roster(
            shape.phones, shape.holders, shape.threshold, place, root.reshape(1, 32), proof.reshape(-1, 32)
        )

    def _take_choice(self, place: int, data: bytes) -> None:
        holders = messages.Choice.from_bytes(data, self.session).holders
        rising = bool((np.diff(holders.astype(np.int64)) > 0).all())
        _expect(len(holders) == self.topology.holders and rising, "holders are not as many as asked, or not in order")
        _expect(int(holders[-1]) < self.topology.phones and place not in holders, "a holder is not another phone")
        self._choices[place] = holders

    def _link(self) -> None:
        self.terms.require_survivors(len(self._choices))
        n, k = self.topology.phones, self.topology.holders
        self._graph = Graph(n, self._choices)
        self._active, self._arrived, self._endorsed = (np.zeros(n, bool) for _ in range(3))
        self._commitments = np.zeros((n, 32), np.uint8)
        self._sealed = np.zeros((n, k, SEALED), np.uint8)
        self.waiting = {self._nodes[place] for place in self._choices}

    def _neighbours(self, place: int) -> messages.Message:
        places, chose = self._graph.neighbours(place)
        proof = np.frombuffer(b"".join(self._tree.prove(places.tolist())), np.uint8).reshape(-1, 32)
        return messages.Neighbours(places.astype(np.uint32), chose.astype(np.uint8), self._keys[places], proof)

    def _take_shares(self, place: int, data: bytes) -> None:
        message = messages.Shares.from_bytes(data, self.session)
        _expect(len(message.commitment) == 1, "not one commitment")
        _expect(len(message.sealed) == self.topology.holders, "not one sealed share for each holder")
        self._commitments[place], self._sealed[place] = message.commitment[0], message.sealed
        self._active[place] = True

    def _list_active(self) -> None:
        self.terms.require_survivors(int(self._active.sum()))
        self._tokens = np.zeros((self.topology.phones, self.topology.holders, messages.TOKEN), np.uint8)
        self.waiting = self._nodes_of(self._active)

    def _held(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return whose shares a phone was sent, in order, and at which of their slots it is."""
        owners, slots = self._graph.chosen_by(place)
        active = self._active[owners]
        return owners[active], slots[active]

    def _inbox(self, place: int) -> messages.Message:
        places, _ = self._graph.neighbours(place)
        return messages.Inbox(self._active[places].astype(np.uint8), self._sealed[self._held(place)])

    def _take_masked(self, place: int, data: bytes) -> None:
        message = messages.Masked.from_bytes(data, self.session)
        _expect(len(message.vector) == packed_size(self.terms.length, self.terms.bits), "the vector's size is wrong")
        self._take_tokens(place, message)
        add_packed(self._total, message.vector, self.terms.bits)

    def _take_tokens(self, place: int, message: messages.Masked) -> None:
        reached = self._active[self._graph.choices[place]]
        _expect(len(message.tokens) == reached.sum(), "not one token for each active holder")
        self._tokens[place, reached] = message.tokens
        self._arrived[place] = True

    def _list_survivors(self) -> None:
        self.terms.require_survivors(self.survivors)
        self._marks = self._sealed[:, :, -2 * messages.MARK :].copy()
        del self._sealed
        self._list = np.packbits(self._arrived, bitorder="little")
        self._signatures = np.zeros((self.topology.phones, 64), np.uint8)
        self.waiting = self._nodes_of(self._arrived)

    def _survivors(self, place: int) -> messages.Message:
        owners, slots = self._held(place)
        arrived = self._arrived[owners]
        return messages.Survivors(self._list, self._tokens[owners[arrived], slots[arrived]])

    def _take_endorsement(self, place: int, data: bytes) -> None:
        signature = messages.Endorsement.from_bytes(data, self.session).signature
        text = keys.survivors_text(self.session, self._list.tobytes())
        _expect(
            len(signature) == 1 and keys.signed(self._keys[place, :32].tobytes(), signature.tobytes(), text),
            "the list of survivors is not signed",
        )
        self._signatures[place], self._endorsed[place] = signature[0], True

    def _list_endorsed(self) -> None:
        n, k = self.topology.phones, self.topology.holders
        enough = np.array(
            [self._endorsed[p] and len(self._endorsers(p)) == self.topology.threshold for p in range(n)], bool
        )
        self._parts, self._shown = np.zeros((n, k, 32), np.uint8), np.zeros((n, k), bool)
        self._withheld = np.zeros(n, np.int64)
        self.waiting = self._nodes_of(enough)

    def _endorsers(self, place: int) -> NDArray[np.int64]:
        """Return the first t holders that signed."""
        holders = self._graph.choices[place]
        return holders[self._endorsed[holders]][: self.topology.threshold]

    def _endorsements(self, place: int) -> messages.Message:
        places = self._endorsers(place)
        return messages.Endorsements(places.astype(np.uint32), self._signatures[places])

    def _take_reveal(self, place: int, data: bytes) -> None:
        message, (owners, slots) = messages.Reveal.from_bytes(data, self.session), self._held(place)
        _expect(len(message.kinds) == len(owners), "not every held phone is answered for")
        shown = message.kinds != NOTHING
        right = np.where(self._arrived[owners], SEED, MASK_KEY)
        _expect(bool((message.kinds == right)[shown].all()), "a share of the wrong secret is shown")
        _expect(len(message.shares) == shown.sum(), "there is not one share for each phone shown")
        marks = self._marks[owners, slots].reshape(-1, 2, messages.MARK)[shown, message.kinds[shown] - 1]
        rows = zip(owners[shown].tolist(), message.kinds[shown].tolist(), message.shares, marks, strict=True)
        dealt = (
            keys.share_mark(self.session, owner, place, kind, share.tobytes()) == mark.tobytes()
            for owner, kind, share, mark in rows
        )
        _expect(all(dealt), "a share is not the one that was dealt")
        self._parts[owners[shown], slots[shown]] = message.shares
        self._shown[owners[shown], slots[shown]] = True
        self._withheld[owners[~shown]] += 1

    def _finish(self) -> None:
        """Take away the masks of survivors themselves, and those that they have in common with dropped phones."""
        secrets = self._secrets()
        masker = Masker(self._total)
        for place, secret in secrets.items():
            if self._arrived[place]:
                masker.subtract(keys.self_seed(secret, self.session, place))
                continue
            places, _ = self._graph.neighbours(place)
            others = places[self._arrived[places]].tolist()
            publics = (self._keys[other, 64:96].tobytes() for other in others)
            for other, seed in pair_seeds(secret, self.session, place, zip(others, publics, strict=True)):
                (masker.subtract if other < place else masker.add)(seed)
        self._total &= np.uint32(2**self.terms.bits - 1)
        self._unmasked = True

    def _secrets(self) -> dict[int, bytes]:
        """Restore survivors' seeds and dropped phones' private mask keys, by place.

        Raises PrivacyError where holders are too few, `Unopened` where it is certain who is to blame instead.
        """
        t, corrupted = self.topology.threshold, most_corrupted(self.terms, self.topology)
        secrets: dict[int, bytes] = {}
        liars, fewest = [], t
        for place in np.flatnonzero(self._active).tolist():
            slots = np.flatnonzero(self._shown[place])[:t]
            if len(slots) == t:
                secrets[place] = shamir.combine(slots + 1, self._parts[place, slots])
                false = not self._right(place, secrets[place])
            else:
                false, fewest = self._withheld[place] > corrupted, min(fewest, len(slots))
            if false:
                liars.append(self._nodes[place])
        if liars:
            raise Unopened(liars)
        if fewest < t:
            raise PrivacyError(
                f"secure sum: {fewest} shares of a phone's secret, {t} needed: too many phones dropped out or showed "
                "none; ask a larger cohort or plan for more dropouts"
            )
        return secrets

    def _right(self, place: int, secret: bytes) -> bool:
        if self._arrived[place]:
            return bool(keys.seed_commitment(secret, self.session, place) == self._commitments[place].tobytes())
        return bool(keys.public_of(secret) == self._keys[place, 64:96].tobytes())

    def _nodes_of(self, chosen: NDArray[np.bool_]) -> set[int]:
        return {self._nodes[place] for place in np.flatnonzero(chosen)}


def _expect(holds: bool, detail: str) -> None:
    if not holds:
        raise WireError("malformed", f"secure sum: {detail}")
