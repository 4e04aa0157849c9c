"""Control payloads: round trips, bounds, garbage."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.control import (
    NACK_RANGES_MAX,
    Beacon,
    Challenge,
    ChallengeReply,
    Control,
    Nack,
    Probe,
    control_type,
    decode_control,
    encode_control,
    nack_ranges,
)
from sync.paths import SIZES
from sync.wire import HEADER_BYTES, PAYLOAD_BYTES_MAX, TAG_BYTES, MessageType, WireError

SEQS = st.integers(0, (1 << 64) - 1)
NONCES = st.binary(min_size=16, max_size=16)
RANGES = st.tuples(SEQS, SEQS).map(lambda pair: (min(pair), max(pair)))
CONTROLS = st.one_of(
    st.builds(Beacon, SEQS, SEQS, st.dictionaries(st.integers(1, 15), SEQS)),
    st.builds(Nack, SEQS, st.lists(RANGES, min_size=1, max_size=NACK_RANGES_MAX)),
    st.builds(Challenge, NONCES),
    st.builds(ChallengeReply, NONCES, SEQS, SEQS),
    st.builds(
        Probe,
        st.integers(1, 62),
        st.dictionaries(
            st.text(max_size=32),
            st.tuples(st.integers(0, 65535), st.booleans()),
            max_size=8,
        ),
        st.binary(max_size=300),
    ),
)


@given(CONTROLS)
def test_round_trip(control: Control) -> None:
    assert decode_control(control_type(control), encode_control(control)) == control


def test_the_largest_of_each_fits_a_datagram() -> None:
    most = (1 << 64) - 1
    for control in (
        Beacon(most, most, dict.fromkeys(range(1, 16), most)),
        Nack(most, [(most, most)] * NACK_RANGES_MAX),
        ChallengeReply(bytes(16), most, most),
        Probe(62, {f"{n}".rjust(32, "x"): (65535, False) for n in range(8)}),
    ):
        assert len(encode_control(control)) <= PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_nack_fits_the_datagrams_of_a_narrow_way(size: int) -> None:
    most = (1 << 64) - 1
    nack = Nack(most, [(most, most)] * nack_ranges(size))
    assert len(encode_control(nack)) + HEADER_BYTES + TAG_BYTES <= size


@given(st.sampled_from([kind for kind in MessageType if kind is not MessageType.DELTAS]),
       st.binary(max_size=80))  # fmt: skip
def test_garbage_raises_only_the_documented_error(kind: MessageType, garbage: bytes) -> None:
    try:
        control = decode_control(kind, garbage)
    except WireError:
        return
    assert control_type(control) is kind


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (MessageType.NACK, [1, []]),
        (MessageType.NACK, [1, [[1, 2]] * (NACK_RANGES_MAX + 1)]),
        (MessageType.NACK, [1, [[2, 1]]]),
        (MessageType.NACK, [1, [[-1, 1]]]),
        (MessageType.CHALLENGE, [bytes(15)]),
        (MessageType.CHALLENGE, [bytes(17)]),
        (MessageType.CHALLENGE, [None]),
        (MessageType.CHALLENGE_REPLY, [bytes(16), 1]),
        (MessageType.BEACON, [1, 2, {0: 1}]),
        (MessageType.BEACON, [1, 2, {16: 1}]),
        (MessageType.BEACON, [1, 2, {1: -1}]),
        (MessageType.BEACON, {}),
        (MessageType.PROBE, [0, {}]),
        (MessageType.PROBE, [63, {}]),
        (MessageType.PROBE, [1, {"x" * 33: [1, True]}]),
        (MessageType.PROBE, [1, {"a": [65536, True]}]),
        (MessageType.PROBE, [1, {str(n): [1, True] for n in range(17)}]),
        (MessageType.PROBE, [1, {}, bytes(2049)]),
    ],
)
def test_values_out_of_bounds_are_refused(kind: MessageType, value: object) -> None:
    with pytest.raises(WireError) as refused:
        decode_control(kind, msgspec.msgpack.encode(value))
    assert refused.value.reason == "bad_payload"


def test_what_is_nested_too_deep_is_refused() -> None:
    payload = b"\x96\x00\x00\x80\x00\x00" + b"\x91" * 5000 + b"\xc0"  # A sixth field.
    with pytest.raises(WireError, match="bad_payload"):
        decode_control(MessageType.BEACON, payload)


def test_deltas_are_not_control() -> None:
    with pytest.raises(AssertionError):
        decode_control(MessageType.DELTAS, b"")
