"""The golden vectors are what the code gives; a part of them is recomputed with nothing of ours."""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.golden.secure_sum import FILE, vectors

GOLDEN = json.loads(FILE.read_text())


def test_the_code_gives_the_golden_vectors():
    made = json.loads(json.dumps(vectors()))
    assert made.keys() == GOLDEN.keys()
    for name, value in made.items():
        assert value == GOLDEN[name], f"{name} changed: a change of the protocol needs a new version in PROTOCOL"


def expand(secret, info, length):
    """RFC 5869 with SHA-256 and no salt."""
    key, block, out = hmac.digest(bytes(32), secret, "sha256"), b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        out += block
    return out[:length]


def test_keys_follow_from_the_standards_alone():
    agreed, derived = GOLDEN["key_agreement"], {k: bytes.fromhex(v) for k, v in GOLDEN["derived"].items()}
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(agreed["private"][0]))
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(agreed["public"][1]))
    assert private.exchange(public) == derived["shared"]
    head = b"fedcaptor secure sum 2\0%s\0" + derived["session"]
    assert expand(derived["shared"], head % b"pair mask" + struct.pack("<II", 5, 9), 32) == derived["pair_mask_5_9"]
    assert expand(derived["seed"], head % b"self mask" + struct.pack("<I", 5), 32) == derived["self_mask_5"]
    both = expand(derived["shared"], head % b"shares" + struct.pack("<II", 9, 5), 48)
    assert both == derived["share_key_9_for_5"] + derived["token_9_for_5"]
    assert ChaCha20Poly1305(both[:32]).decrypt(bytes(12), derived["sealed"], None) == derived["shares"]
    mark = hashlib.sha256(head % b"share mark" + struct.pack("<III", 9, 5, 2) + derived["shares"][32:]).digest()
    assert mark[:16] == derived["mark_of_mask_key_9_for_5"]


def test_the_keystream_is_aes_256_in_counter_mode():
    stream = GOLDEN["keystream"]
    cipher = Cipher(algorithms.AES(bytes.fromhex(stream["seed"])), modes.CTR(bytes(16))).encryptor()
    assert list(struct.unpack("<6I", cipher.update(bytes(24)))) == stream["words"]


def test_the_toy_sum_is_right_and_its_messages_are_laid_out_as_said():
    toy = GOLDEN["toy_sum"]
    assert hashlib.sha256(toy["terms"]["hashed"].encode()).hexdigest() == toy["terms"]["binding"]
    assert toy["sum"] == [(1 + 10 + 8191) % 8192, 22, 133]
    for message in toy["messages"]:
        data = bytes.fromhex(message.get("request") or message["reply"])
        assert data[0] == 2
        assert data[1] == 2 * message["step"] + ("reply" in message)
        tag = toy["terms"]["binding"] if data[1] <= 2 else toy["session"]
        assert data[2:18].hex() == tag[:32]
    last = [m for m in toy["messages"] if "reply" in m][-1]
    data = bytes.fromhex(last["reply"])
    count = struct.unpack_from("<I", data, 18)[0]
    assert len(data) == 18 + 4 + count + 4 + 32 * sum(k > 0 for k in data[22 : 22 + count])


def test_the_list_of_survivors_is_hashed_into_what_is_signed():
    text = bytes.fromhex(GOLDEN["signatures"]["survivors_text"])
    assert text.endswith(hashlib.sha256(b"\x0b").digest())
