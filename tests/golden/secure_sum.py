"""Golden vectors of secure sums, for a client in another language: `python -m tests.golden.secure_sum` writes them.

Bytes are in hexadecimal. All randomness is stated, so every value follows from the inputs beside it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedcaptor.client.secure_sum.steps import draw_holders
from fedcaptor.common.secure import keys, messages, shamir
from fedcaptor.common.secure.masks import Masker
from fedcaptor.common.secure.merkle import MerkleTree, leaf
from fedcaptor.common.secure.messages import STEPS
from fedcaptor.common.secure.packing import pack
from fedcaptor.common.secure.terms import PROTOCOL
from tests.common.secure_cohort import Cohort, stream, terms

FILE = Path(__file__).with_suffix(".json")
SESSION = bytes(range(100, 132))
ONE, OTHER, SEED = (bytes([i]) * 32 for i in (1, 2, 3))


def vectors():
    return {
        "terms": _terms(terms(4)),
        "key_agreement": _key_agreement(),
        "contexts": {
            "pair mask, 5 and 9": keys.context("pair mask", SESSION, 5, 9).hex(),
            "self mask, 5": keys.context("self mask", SESSION, 5).hex(),
            "seed commitment, 5": keys.context("seed commitment", SESSION, 5).hex(),
            "shares, 9 for 5": keys.context("shares", SESSION, 9, 5).hex(),
        },
        "derived": _derived(),
        "keystream": _keystream(),
        "shamir": _shamir(),
        "packing": [
            {"bits": b, "values": v, "packed": pack(np.array(v, np.uint32), b).tobytes().hex()} for b, v in _PACK
        ],
        "merkle": _merkle(),
        "holders": _holders(),
        "signatures": _signatures(),
        "toy_sum": toy_sum(),
    }


_PACK = [(8, [1, 255, 0]), (13, [8191, 0, 4097, 2, 5]), (19, [1 << 18, 3, 1]), (32, [4294967295, 1])]


def _terms(agreed):
    hashed = PROTOCOL.decode() + json.dumps(asdict(agreed), sort_keys=True)
    return {"fields": asdict(agreed), "hashed": hashed, "binding": agreed.binding.hex()}


def _key_agreement():
    return {
        "private": [ONE.hex(), OTHER.hex()],
        "public": [keys.public_of(ONE).hex(), keys.public_of(OTHER).hex()],
        "shared": keys.Agreement(ONE).secret(keys.public_of(OTHER)).hex(),
    }


def _derived():
    shared = keys.Agreement(ONE).secret(keys.public_of(OTHER))
    key, token = keys.share_key(shared, SESSION, 9, 5)
    shares = bytes(range(64))
    return {
        "shared": shared.hex(),
        "session": SESSION.hex(),
        "seed": SEED.hex(),
        "pair_mask_5_9": keys.mask_seed(shared, SESSION, 9, 5).hex(),
        "self_mask_5": keys.self_seed(SEED, SESSION, 5).hex(),
        "seed_commitment_5": keys.seed_commitment(SEED, SESSION, 5).hex(),
        "share_key_9_for_5": key.hex(),
        "token_9_for_5": token.hex(),
        "shares": shares.hex(),
        "sealed": keys.seal(key, shares).hex(),
        "mark_of_mask_key_9_for_5": keys.share_mark(SESSION, 9, 5, messages.MASK_KEY, shares[32:]).hex(),
    }


def _keystream():
    total = np.zeros(6, np.uint32)
    Masker(total).add(SEED)
    return {"seed": SEED.hex(), "words": total.tolist()}


def _shamir():
    coefficients = bytes(range(10, 10 + 8))
    shares = shamir.split(b"seed", 3, 5, lambda count: coefficients[:count])
    return {
        "secret": b"seed".hex(),
        "threshold": 3,
        "coefficients_highest_first": coefficients.hex(),
        "shares": [row.tobytes().hex() for row in shares],
    }


def _merkle():
    contents = [b"a", b"bc", b"", b"d", b"e"]
    tree = MerkleTree([leaf(c) for c in contents])
    return {
        "contents": [c.hex() for c in contents],
        "leaves": [leaf(c).hex() for c in contents],
        "root": tree.root.hex(),
        "proofs": [{"places": p, "proof": [h.hex() for h in tree.prove(p)]} for p in ([0], [4], [1, 2], [0, 3, 4])],
    }


def _holders():
    lots = stream("holders")(8 * 6)
    drawn = draw_holders(lambda count: lots[:count], 7, 3, 2)
    return {"phones": 7, "count": 3, "place": 2, "lots": lots.hex(), "holders": drawn.tolist()}


def _signatures():
    agreed = terms(4)
    return {
        "advert_text": keys.advert_text(agreed, ONE, OTHER).hex(),
        "survivors_text": keys.survivors_text(SESSION, b"\x0b").hex(),
    }


def toy_sum():
    """Four phones, the last of which is lost before it sends its vector; every message of each."""
    sums = Cohort(terms(4, length=3, bits=13), [[1, 2, 3], [10, 20, 30], [8191, 0, 100], [5, 5, 5]])
    said = []

    def note(direction):
        def noted(step, node, data):
            said.append({"step": step, "node": node, direction: data.hex()})
            return data

        return noted

    sums.on_request, sums.on_reply = note("request"), note("reply")
    sums.lost = lambda step, node: node == 3 and step >= 3
    result = sums.until(STEPS).server.result()
    return {
        "terms": _terms(sums.terms),
        "vectors": sums.vectors.tolist(),
        "kinds": {kind.__name__: kind.KIND for kind in messages.Message.__subclasses__()},
        "holders": sums.server.topology.holders,
        "threshold": sums.server.topology.threshold,
        "session": sums.server.session.hex(),
        "random": "SHA-256 of 'phone NODE/COUNTER', counter from 0, cut to length at each call",
        "identity": "Ed25519 private key: SHA-256 of 'identity NODE'",
        "messages": said,
        "sum": result.tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")
    print(FILE)
