"""What libcrypto seals and hashes is what `cryptography` and hashlib do, byte for byte."""

from __future__ import annotations

from hashlib import blake2b

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from sync import _codec as codec

KEYS = st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=12, max_size=12)


@given(
    KEYS, st.lists(st.tuples(NONCES, st.binary(max_size=1400), st.binary(max_size=64)), max_size=4)
)
def test_seals_and_opens_as_the_reference_one_after_the_other(
    key: bytes, texts: list[tuple[bytes, bytes, bytes]]
) -> None:
    native, reference = codec.Aead(key), AESGCM(key)
    for nonce, plain, head in texts:
        sealed = native.seal_bytes(nonce, plain, head)
        assert sealed == reference.encrypt(nonce, plain, head)
        assert native.open_bytes(nonce, sealed, head) == plain


@given(KEYS, NONCES, st.binary(max_size=40), st.binary(min_size=1, max_size=40), st.data())
def test_what_was_changed_does_not_open_and_the_next_one_does(
    key: bytes, nonce: bytes, plain: bytes, head: bytes, data: st.DataObject
) -> None:
    native = codec.Aead(key)
    sealed = native.seal_bytes(nonce, plain, head)
    bit = data.draw(st.integers(0, 8 * (len(nonce) + len(sealed) + len(head)) - 1))
    whole = bytearray(nonce + sealed + head)
    whole[bit // 8] ^= 1 << bit % 8
    changed = bytes(whole)
    end = len(nonce) + len(sealed)
    assert native.open_bytes(changed[:12], changed[12:end], changed[end:]) is None
    assert native.open_bytes(nonce, sealed[:-1], head) is None
    assert native.open_bytes(nonce, sealed[:15], head) is None
    assert native.open_bytes(nonce, sealed, head) == plain


@given(
    st.binary(min_size=1, max_size=64),
    st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=1400)), max_size=4),
)
def test_hashes_as_the_reference_one_after_the_other(
    key: bytes, texts: list[tuple[bytes, bytes]]
) -> None:
    native = codec.KeyedHash(key)
    for first, second in texts:
        want = blake2b(first + second, digest_size=8, key=key).digest()
        assert native.digest_bytes(first, second) == want
