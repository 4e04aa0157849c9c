"""The lease channel's wire: what is not ours, not whole or not of our key is refused by name."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.heartbeat import (
    DATAGRAM_BYTES_MAX,
    HEADER,
    TAG_BYTES,
    Beat,
    Codec,
    DatagramError,
    Envelope,
    GroupBeat,
    Heard,
    Message,
    Prepare,
    Release,
    Voters,
    derive_key,
)
from hafw.messages import Position

KEY = derive_key(bytes(32), cluster_id=7)
U63 = st.integers(0, (1 << 63) - 1)


def envelope(*messages: Message) -> Envelope:
    return Envelope(
        session=(1 << 63) - 1,
        seq=9,
        to=0,
        voters_id=1,
        voters_hash="0123456789abcdef",
        heard=[Heard(2, 77, True)],
        messages=list(messages),
    )


BEAT = Beat(
    3,
    True,
    True,
    [GroupBeat(1, 5, 0, 2, False, True, "snapshot runs")],
    [(2, 8, 40)],
    Voters(1, (1, 2, 9)),
    None,
)
DATAGRAM = Codec(KEY, cluster_id=7, node_id=1).seal(envelope(BEAT, Prepare(1, 1 << 62)))


def reason(datagram: bytes, codec: Codec | None = None) -> str:
    with pytest.raises(DatagramError) as caught:
        (codec or Codec(KEY, cluster_id=7, node_id=2)).open(datagram)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


NESTED = b"\x91" * 5000 + b"\xc0"
"""Lists in lists, deeper than any decoder follows."""


def test_what_is_nested_too_deep_is_malformed() -> None:
    body = DATAGRAM[HEADER.size : -TAG_BYTES]
    longer = body.replace(b"\x93\x02M\xc3", b"\x94\x02M\xc3" + NESTED)
    assert longer != body
    text = DATAGRAM[: HEADER.size] + longer
    sealed = text + hmac.new(KEY, text, hashlib.sha256).digest()[:TAG_BYTES]
    assert reason(sealed) == "malformed"


def test_open_gives_back_what_was_sealed() -> None:
    sender, opened = Codec(KEY, cluster_id=7, node_id=2).open(DATAGRAM)
    assert sender == 1
    assert opened == envelope(BEAT, Prepare(1, 1 << 62))


@given(
    session=U63,
    seq=U63,
    heard=st.lists(st.builds(Heard, st.integers(0, 62), U63, st.booleans()), max_size=10),
    epoch=U63,
    position=st.none() | st.builds(Position, sender_id=U63, session=U63, seq=U63),
)
def test_every_envelope_survives(
    session: int, seq: int, heard: list[Heard], epoch: int, position: Position | None
) -> None:
    codec = Codec(KEY, cluster_id=7, node_id=1)
    message = Release(15, epoch, 62, position)
    whole = Envelope(session, seq, 62, 1, "f" * 16, heard, [message])
    assert codec.open(codec.seal(whole)) == (1, whole)


def test_tag_is_hmac_sha256_over_header_and_body() -> None:
    text, tag = DATAGRAM[:-TAG_BYTES], DATAGRAM[-TAG_BYTES:]
    assert tag == hmac.new(KEY, text, hashlib.sha256).digest()[:16]


def test_key_depends_on_the_cluster_and_the_file() -> None:
    assert (
        len({KEY, derive_key(bytes(32), cluster_id=8), derive_key(b"1" * 32, cluster_id=7)}) == 3
    )


def test_wrong_key_is_refused() -> None:
    other = Codec(derive_key(b"x" * 32, cluster_id=7), cluster_id=7, node_id=2)
    assert reason(DATAGRAM, other) == "bad_tag"


def test_every_truncation_is_refused() -> None:
    for length in range(len(DATAGRAM)):
        expected = "truncated" if length < HEADER.size + TAG_BYTES + 1 else "bad_tag"
        assert reason(DATAGRAM[:length]) == expected


def test_every_flipped_byte_is_refused() -> None:
    for at in range(len(DATAGRAM)):
        changed = bytearray(DATAGRAM)
        changed[at] ^= 0x40
        names = {0: "bad_magic", 1: "bad_magic", 2: "wrong_version", 3: "bad_tag"}
        expected = names.get(at, "wrong_cluster" if at < HEADER.size else "bad_tag")
        assert reason(bytes(changed)) == expected


def test_oversize_is_refused_unread() -> None:
    assert reason(DATAGRAM[:8] + bytes(DATAGRAM_BYTES_MAX)) == "oversize"


def sealed_raw(body: bytes) -> bytes:
    text = DATAGRAM[: HEADER.size] + body
    return text + hmac.digest(KEY, text, "sha256")[:TAG_BYTES]


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode([1, 2, 0, 1, "x", [], [["nonsense", 1]]]),
        msgspec.msgpack.encode([-1, 2, 0, 1, "x", [], []]),
        msgspec.msgpack.encode([1, 2, 63, 1, "x", [], []]),
        msgspec.msgpack.encode([1, 2, 0, 1, "x", [], [["p", 16, 1]]]),
        msgspec.msgpack.encode([1, 2, 0, 1, "x", [], [["p", 1, 1]] * 65]),
        msgspec.msgpack.encode([1, 2, 0, 1, "x" * 17, [], []]),
        b"\x97\x01\x02\x00\x01\xa1\xff\x90\x90",
    ],
)
def test_authentic_but_malformed_is_refused(body: bytes) -> None:
    assert reason(sealed_raw(body)) == "malformed"


def test_fifteen_groups_with_reasons_fit_well() -> None:
    groups = [GroupBeat(i, 1 << 62, 1 << 62, 62, False, True, "r" * 80) for i in range(1, 16)]
    beat = Beat(
        1,
        True,
        True,
        groups,
        [(node, 1 << 40, 1 << 40) for node in range(61)],
        Voters(1 << 40, tuple(range(1, 16))),
        Voters(1 << 40, tuple(range(1, 15))),
    )
    heard = [Heard(node, 1 << 62, True) for node in range(61) for _ in range(4)]
    whole = Envelope(1, 1, 0, 1, "f" * 16, heard, [beat])
    assert len(Codec(KEY, cluster_id=7, node_id=1).seal(whole)) < DATAGRAM_BYTES_MAX
