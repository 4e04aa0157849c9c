"""Sealed datagrams: what opens, and every way in which one must not."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from sync import _codec
from sync.wire import (
    CACHED_KEYS_MAX,
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    TAG_BYTES,
    Header,
    MessageType,
    Opener,
    ReplayWindow,
    Sealer,
    Seals,
    WireError,
    derive_key,
    nonce_of,
    parse_header,
)

MASTER = bytes(range(32))
CLUSTER, SENDER, SESSION, EPOCH = 0x1A2B3C4D, 1, 0x0123456789ABCDEF, 7 << 32 | 1
PAYLOAD = b"forty-two deltas"


def sealer(
    session: int = SESSION,
    sender: int = SENDER,
    master: bytes = MASTER,
    key_id: int = 3,
    draw: Callable[[int], bytes] = bytes,
    kind: type[Sealer | _codec.Sealer] = Sealer,
) -> Sealer | _codec.Sealer:
    """`draw` is the worst random source there is, unless it matters."""
    return kind(
        master,
        key_id=key_id,
        cluster_id=CLUSTER,
        sender_id=sender,
        session=session,
        draw=draw,
    )


both_kinds = pytest.mark.parametrize("kind", [Sealer, _codec.Sealer], ids=["pure", "native"])


def opener(cluster: int = CLUSTER, master: bytes = MASTER) -> Opener:
    return Opener({3: master}, cluster_id=cluster, senders={1, 2})


def reason(datagram: bytes, receiver: Opener | None = None) -> str:
    with pytest.raises(WireError) as refused:
        (receiver or opener()).open(datagram)
    return refused.value.reason


SEALED = sealer().seal(MessageType.DELTAS, 9, EPOCH, PAYLOAD)


@pytest.mark.parametrize("kind", list(MessageType))
@pytest.mark.parametrize("payload", [b"", PAYLOAD, bytes(PAYLOAD_BYTES_MAX)])
def test_what_is_sealed_opens(kind: MessageType, payload: bytes) -> None:
    datagram = sealer().seal(kind, 9, EPOCH, payload)
    header, opened = opener().open(datagram)
    assert opened == payload
    assert header == Header(kind, len(payload), CLUSTER, SENDER, 3, SESSION, EPOCH, 9)
    assert len(datagram) == HEADER_BYTES + len(payload) + TAG_BYTES <= DATAGRAM_BYTES_MAX


def test_the_bytes_on_the_wire_are_pinned() -> None:
    assert SEALED[:HEADER_BYTES].hex() == (
        "68435453"  # magic
        "02" "01" "0010"  # version, type, length
        "1a2b3c4d" "01" "03" "0000"  # cluster, sender, key, zero
        "0123456789abcdef"  # session
        "0000000700000001"  # epoch
        "0000000000000009"  # seq
        + hashlib.blake2b(bytes(16) + SEALED[:40] + PAYLOAD, key=bytes(32), digest_size=8)
        .hexdigest()  # fresh
    )  # fmt: skip
    # RFC 5869 by hand, no salt; nonce = fresh, type, seq; the header is the associated data.
    extracted = hmac.digest(bytes(32), MASTER, "sha256")
    info = b"hafw ct_sync 2" + bytes.fromhex("1a2b3c4d010123456789abcdef")
    key = hmac.digest(extracted, info + b"\x01", "sha256")
    nonce = SEALED[40:48] + bytes.fromhex("20000009")
    assert nonce == nonce_of(SEALED)
    assert AESGCM(key).decrypt(nonce, SEALED[HEADER_BYTES:], SEALED[:HEADER_BYTES]) == PAYLOAD


def test_derived_keys_differ_by_cluster_sender_session_and_master() -> None:
    base = {"cluster_id": 1, "sender_id": 2, "session": 3}
    keys = {derive_key(MASTER, **base)}
    for name in base:
        keys.add(derive_key(MASTER, **{**base, name: 9}))
    keys.add(derive_key(bytes(32), **base))
    assert len(keys) == 5
    assert all(len(key) == 32 for key in keys)


def test_a_wrong_master_key_opens_nothing() -> None:
    assert reason(SEALED, opener(master=bytes(32))) == "bad_tag"


def test_truncation_at_every_length_is_refused() -> None:
    for length in range(len(SEALED)):
        expected = "truncated" if length < HEADER_BYTES + TAG_BYTES else "lying_length"
        assert reason(SEALED[:length]) == expected
    assert reason(SEALED + b"\0") == "lying_length"


def test_a_flipped_bit_in_any_byte_is_refused() -> None:
    for index in range(len(SEALED)):
        for bit in range(8):
            broken = bytearray(SEALED)
            broken[index] ^= 1 << bit
            expected = {"bad_tag"}
            if index < 4:
                expected = {"bad_magic"}
            elif index == 4:
                expected = {"wrong_version"}
            elif index == 5:
                expected = {"unknown_type", "bad_tag"}
            elif index < 8:
                expected = {"lying_length"}
            elif index < 12:
                expected = {"wrong_cluster"}
            elif index == 12:
                expected = {"foreign_sender", "bad_tag"}
            elif index == 13:
                expected = {"unknown_key"}
            assert reason(bytes(broken)) in expected, (index, bit)


def test_another_cluster_version_or_sender_is_named() -> None:
    assert reason(SEALED, opener(cluster=5)) == "wrong_cluster"
    assert reason(sealer(sender=3).seal(MessageType.DELTAS, 1, 0, b"")) == "foreign_sender"
    broken = bytearray(SEALED)
    broken[4] = 1
    with pytest.raises(WireError, match="version 1; this node speaks 2"):
        opener().open(bytes(broken))


def test_a_datagram_passed_off_as_another_type_seq_epoch_or_session_is_refused() -> None:
    for offset, value in ((5, 2), (39, 8), (31, 0), (23, 0), (40, SEALED[40] ^ 1)):
        broken = bytearray(SEALED)
        assert broken[offset] != value
        broken[offset] = value
        assert reason(bytes(broken)) == "bad_tag"


@given(st.binary(max_size=200))
def test_garbage_raises_only_the_documented_error(garbage: bytes) -> None:
    for datagram in (garbage, b"hCTS\x02\x01" + garbage, SEALED[:HEADER_BYTES] + garbage):
        with pytest.raises(WireError):
            opener().open(datagram)


def test_any_sender_is_heard_where_none_is_listed() -> None:
    header = parse_header(SEALED, cluster_id=CLUSTER)
    assert header.sender_id == SENDER
    with pytest.raises(WireError):
        parse_header(SEALED, cluster_id=CLUSTER, senders={2})


@both_kinds
def test_each_type_has_its_own_counter_and_no_nonce_comes_twice(
    kind: type[Sealer | _codec.Sealer],
) -> None:
    sender = sealer(kind=kind)
    sealed = [sender.seal(one, 1, EPOCH, PAYLOAD) for one in MessageType]
    bodies = {datagram[HEADER_BYTES:] for datagram in sealed}
    assert len(bodies) == len(MessageType)
    for seq in (1, 0):
        with pytest.raises(AssertionError):
            sender.seal(MessageType.BEACON, seq, EPOCH, PAYLOAD)
    sender.seal(MessageType.BEACON, 5, EPOCH, PAYLOAD)
    with pytest.raises(AssertionError):
        sender.seal(MessageType.BEACON, 4, EPOCH, PAYLOAD)
    with pytest.raises((AssertionError, OverflowError)):
        sender.seal(MessageType.NACK, 1 << 64, EPOCH, PAYLOAD)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, (1 << 64) - 1),
    st.lists(
        st.tuples(
            st.sampled_from(MessageType),
            st.integers(1, 1 << 62),
            st.integers(0, (1 << 64) - 1),
            st.binary(max_size=PAYLOAD_BYTES_MAX),
            st.none() | st.integers(0, 255),
        ),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_the_native_sealer_seals_the_same_bytes(
    master: bytes,
    session: int,
    texts: list[tuple[MessageType, int, int, bytes, int | None]],
    rng: random.Random,
) -> None:
    """From the same random source, over key changes."""
    drawn: list[bytes] = []

    def draw(size: int) -> bytes:
        drawn.append(rng.randbytes(size))
        return drawn[-1]

    pure = sealer(session=session, master=master, draw=draw)
    repeated = iter(drawn)
    native = sealer(
        session=session, master=master, draw=lambda _: next(repeated), kind=_codec.Sealer
    )
    for kind, seq, epoch, payload, key_id in sorted(texts, key=lambda text: text[1]):
        if key_id is not None:
            pure.use_key(key_id, master[::-1])
            native.use_key(key_id, master[::-1])
        try:
            sealed = pure.seal(kind, seq, epoch, payload)
        except AssertionError:
            with pytest.raises(AssertionError):
                native.seal(kind, seq, epoch, payload)
        else:
            assert native.seal(kind, seq, epoch, payload) == sealed
        assert (native.session, native.key_id) == (pure.session, pure.key_id)


@both_kinds
def test_a_nonce_is_never_zero(kind: type[Sealer | _codec.Sealer]) -> None:
    with pytest.raises(AssertionError):
        sealer(kind=kind).seal(MessageType.DELTAS, 0, EPOCH, PAYLOAD)


def seal_some(sender: Seals, word: bytes) -> list[bytes]:
    return [
        sender.seal(kind, seq, EPOCH, word + bytes(8))
        for seq in range(10, 110)
        for kind in MessageType
    ]


def nonces(datagrams: list[bytes]) -> set[tuple[int, bytes]]:
    return {(datagram[13], nonce_of(datagram)) for datagram in datagrams}


def sealed_after_a_fork(sender: Seals, word: bytes) -> list[bytes]:
    """What a copy of this very process seals from here on."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(b"".join(seal_some(sender, word)))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    size = HEADER_BYTES + len(word) + 8 + TAG_BYTES
    return [text[at : at + size] for at in range(0, len(text), size)]


@both_kinds
@pytest.mark.parametrize("draw", [os.urandom, bytes], ids=["random", "repeating"])
def test_doubles_of_a_process_never_use_a_nonce_for_two_texts(
    draw: Callable[[int], bytes], kind: type[Sealer | _codec.Sealer]
) -> None:
    """As after a fork, or when a snapshot of the machine is resumed twice; `repeating` is a
    kernel whose generator goes on alike in both copies."""
    sender = sealer(draw=draw, kind=kind)
    copies = [sealed_after_a_fork(sender, word) for word in (b"left", b"back")]
    copies.append(seal_some(sender, b"here"))
    seen = [nonces(copy) for copy in copies]
    number = 100 * len(MessageType)
    assert [len(each) for each in seen] == [number] * 3
    assert len(set.union(*seen)) == 3 * number
    # They are doubles: what counts on seq alone would have used each nonce three times.
    assert len({datagram[4:6] + datagram[16:40] for copy in copies for datagram in copy}) == number
    receiver = opener()
    for copy in copies:
        for datagram in copy:
            receiver.open(datagram)


def test_doubles_draw_from_the_kernel_each_for_itself() -> None:
    sender = _codec.Sealer(MASTER, key_id=3, cluster_id=CLUSTER, sender_id=1, session=SESSION)
    seen = [nonces(sealed_after_a_fork(sender, b"same")), nonces(seal_some(sender, b"same"))]
    assert len(set.union(*seen)) == 200 * len(MessageType)


@both_kinds
def test_a_double_that_says_the_same_gives_nothing_away(
    kind: type[Sealer | _codec.Sealer],
) -> None:
    sender = sealer(draw=bytes, kind=kind)
    assert sealed_after_a_fork(sender, b"same") == seal_some(sender, b"same")


@both_kinds
def test_a_changed_key_goes_on_with_the_same_counters(
    kind: type[Sealer | _codec.Sealer],
) -> None:
    sender, receiver = sealer(kind=kind), opener()
    first = sender.seal(MessageType.DELTAS, 1, EPOCH, PAYLOAD)
    sender.use_key(4, bytes(32))
    with pytest.raises(AssertionError):
        sender.seal(MessageType.DELTAS, 1, EPOCH, PAYLOAD)
    second = sender.seal(MessageType.DELTAS, 2, EPOCH, PAYLOAD)
    assert reason(second, receiver) == "unknown_key"
    receiver.accept_keys({3: MASTER, 4: bytes(32)})
    assert receiver.open(first)[0].key_id == 3
    assert receiver.open(second)[0].key_id == 4
    receiver.accept_keys({4: bytes(32)})
    assert reason(first, receiver) == "unknown_key", "the cache does not outlive the key"
    assert receiver.open(second)[1] == PAYLOAD


def test_strangers_cannot_grow_the_cache_nor_push_a_peer_out() -> None:
    receiver = opener()
    receiver.open(SEALED)
    for session in range(3 * CACHED_KEYS_MAX):
        stranger = sealer(session, master=bytes(32)).seal(MessageType.DELTAS, 1, 0, PAYLOAD)
        assert reason(stranger, receiver) == "bad_tag"
    assert receiver.cached_keys == 1


def test_the_cache_of_keys_is_bounded_and_forgets_the_oldest_use() -> None:
    receiver = opener()
    for session in range(CACHED_KEYS_MAX):
        receiver.open(sealer(session).seal(MessageType.DELTAS, 1, 0, PAYLOAD))
    receiver.open(sealer(0).seal(MessageType.DELTAS, 1, 0, PAYLOAD))
    for session in range(1000, 1000 + CACHED_KEYS_MAX - 1):
        receiver.open(sealer(session).seal(MessageType.DELTAS, 1, 0, PAYLOAD))
    assert receiver.cached_keys == CACHED_KEYS_MAX
    # A key that was forgotten is derived again.
    assert receiver.open(sealer(5).seal(MessageType.DELTAS, 1, 0, PAYLOAD))[1] == PAYLOAD
    assert receiver.cached_keys == CACHED_KEYS_MAX


def test_the_opener_leaves_replay_to_the_window() -> None:
    receiver, window = opener(), ReplayWindow()
    accepted = []
    for _ in range(2):
        header, _ = receiver.open(SEALED)
        accepted.append(window.accept(header.seq))
    assert accepted == [True, False]


def test_a_replay_from_an_earlier_start_opens_but_names_its_session() -> None:
    """The session tells it apart; syncd refuses any that has not answered its challenge."""
    old = sealer(session=1).seal(MessageType.DELTAS, 9, EPOCH, PAYLOAD)
    header, _ = opener().open(old)
    assert header.session == 1 != SESSION


class DumbWindow:
    """The oracle: a set of everything that ever came."""

    def __init__(self, size: int, highest: int) -> None:
        self.size, self.highest, self.came = size, highest, set(range(highest + 1))

    def accept(self, seq: int) -> bool:
        if seq in self.came or seq <= self.highest - self.size:
            return False
        self.came.add(seq)
        self.highest = max(self.highest, seq)
        return True


@given(
    st.sampled_from([1, 2, 8, 64]),
    st.integers(0, 20),
    st.lists(st.integers(0, 200), max_size=80),
)
def test_the_window_agrees_with_a_set(size: int, highest: int, sequence: list[int]) -> None:
    window, oracle = ReplayWindow(size, highest=highest), DumbWindow(size, highest)
    for seq in sequence:
        seen = window.seen(seq)
        accepted = window.accept(seq)
        assert accepted == oracle.accept(seq) == (not seen)
        assert window.seen(seq)
        assert window.highest == oracle.highest


@pytest.mark.parametrize("shuffle", [lambda rng, seqs: rng.shuffle(seqs), lambda rng, seqs: None])
def test_the_default_window_takes_4096_out_of_order(
    shuffle: Callable[[random.Random, list[int]], None],
) -> None:
    window = ReplayWindow()
    seqs = list(range(1, 4097))
    shuffle(random.Random(1), seqs)
    assert all(window.accept(seq) for seq in seqs)
    assert not any(window.accept(seq) for seq in seqs)
    assert window.accept(1 << 63)
    assert not window.accept((1 << 63) - 4096)
    assert window.accept((1 << 63) - 4095)
