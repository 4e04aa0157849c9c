"""What probes send: every wrong byte is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafw.lab.probe_stream import (
    ANSWER,
    CHUNK_BYTES,
    FRAME_BYTES,
    HELLO_BYTES,
    REQUEST,
    Frame,
    Hello,
    HelloKind,
    StreamCheck,
    decode_frame,
    decode_hello,
    encode_frame,
    encode_hello,
    stream_slice,
)

SALTS = st.integers(0, (1 << 63) - 1)
POSITIONS = st.integers(0, 5 * CHUNK_BYTES)
SIZES = st.integers(0, 3 * CHUNK_BYTES)


@given(SALTS, POSITIONS, SIZES, SIZES)
def test_a_stream_is_the_same_however_it_is_cut(
    salt: int, position: int, first: int, second: int
) -> None:
    whole = stream_slice(salt, position, first + second)
    assert len(whole) == first + second
    assert whole == stream_slice(salt, position, first) + stream_slice(
        salt, position + first, second
    )


@given(SALTS, st.integers(1, 3 * CHUNK_BYTES), st.data())
def test_one_flipped_bit_anywhere_is_found_at_its_position(
    salt: int, size: int, data: st.DataObject
) -> None:
    octets = bytearray(stream_slice(salt, 0, size))
    where = data.draw(st.integers(0, size - 1))
    octets[where] ^= 1 << data.draw(st.integers(0, 7))
    check = StreamCheck(salt)
    wrong = check.feed(bytes(octets))
    assert wrong is not None
    assert wrong.startswith(f"byte {where} of the stream")
    assert check.position == where


@given(SALTS, st.integers(1, 1000))
def test_a_stream_shifted_by_whole_chunks_is_wrong(salt: int, chunks: int) -> None:
    check = StreamCheck(salt)
    assert check.feed(stream_slice(salt, chunks * CHUNK_BYTES, CHUNK_BYTES)) is not None


def test_the_stream_of_another_flow_is_wrong() -> None:
    assert StreamCheck(1).feed(stream_slice(2, 0, 100)) is not None


def test_a_right_stream_in_odd_pieces_is_counted() -> None:
    check = StreamCheck(7)
    octets = stream_slice(7, 0, 100_000)
    for start in range(0, len(octets), 777):
        assert check.feed(octets[start : start + 777]) is None
    assert check.position == 100_000


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_a_frame_comes_back_as_it_was(flow: int, seq: int, sent_ns: int) -> None:
    frame = Frame(flow, seq, sent_ns)
    octets = encode_frame(REQUEST, frame)
    assert len(octets) == FRAME_BYTES
    assert decode_frame(REQUEST, octets) == frame
    assert decode_frame(ANSWER, octets) is None


@pytest.mark.parametrize("where", [0, 5, 12, *range(24, FRAME_BYTES)])
def test_a_frame_with_a_wrong_byte_is_refused(where: int) -> None:
    octets = bytearray(encode_frame(REQUEST, Frame(3, 12345, 0)))
    octets[where] ^= 0x40
    assert decode_frame(REQUEST, bytes(octets)) is None


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES + 1])
def test_a_frame_of_another_length_is_refused(size: int) -> None:
    octets = encode_frame(REQUEST, Frame(3, 1, 0)) + b"\0"
    assert decode_frame(REQUEST, octets[:size]) is None


@given(st.sampled_from(list(HelloKind)), st.integers(0, 1 << 31), SALTS, st.integers(0, 1 << 31))
def test_a_hello_comes_back_as_it_was(
    kind: HelloKind, flow: int, salt: int, octets_s: int
) -> None:
    hello = Hello(kind, flow, salt, octets_s)
    octets = encode_hello(hello)
    assert len(octets) == HELLO_BYTES
    assert decode_hello(octets) == hello


@given(st.binary(max_size=2 * HELLO_BYTES))
def test_what_is_no_hello_is_none(octets: bytes) -> None:
    assert decode_hello(octets) is None


def test_a_hello_of_an_unknown_kind_is_none() -> None:
    octets = bytearray(encode_hello(Hello(HelloKind.UP, 1, 2)))
    octets[7] = 9
    assert decode_hello(bytes(octets)) is None
