"""Judge (b)'s frames: right on the wire, known again, anything else ignored."""

from __future__ import annotations

import struct

import pytest

from cluster.checksum import checksum
from hafw.lab.judges import DualFrame
from hafw.lab.probe_frames import DPORT, Forwardings, build_frame, parse_frame

MAC = bytes.fromhex("00005e000101")
PAYLOAD = struct.pack("!4sIIIQQ", b"hfdj", 77, 1, 0, 123456, 999)
V4 = ("192.0.2.10", "198.51.100.10")
V6 = ("2001:db8:1::10", "2001:db8:2::10")


@pytest.mark.parametrize(("source", "server"), [V4, V6])
def test_a_frame_is_what_a_host_would_send(source: str, server: str) -> None:
    frame = build_frame(MAC, source, server, PAYLOAD)
    assert frame[:6] == MAC
    assert frame[6] & 1 == 0, "the source is no group address"
    v4 = ":" not in source
    header, start = (frame[14:34], 34) if v4 else (frame[14:54], 54)
    assert struct.unpack_from("!H", frame, start + 2)[0] == DPORT
    assert struct.unpack_from("!H", frame, start + 4)[0] == len(frame) - start
    if v4:
        assert checksum(header) == 0
        pseudo = header[12:20]
        assert struct.unpack_from("!H", header, 2)[0] == len(frame) - 14
    else:
        pseudo = header[8:40]
        assert struct.unpack_from("!H", header, 4)[0] == len(frame) - start
    assert checksum(pseudo + struct.pack("!HH", 17, len(frame) - start) + frame[start:]) == 0


@pytest.mark.parametrize(("source", "server"), [V4, V6])
def test_a_frame_of_this_run_is_known_again(source: str, server: str) -> None:
    frame = build_frame(MAC, source, server, PAYLOAD)
    assert parse_frame(frame, 77) == (1, 123456, 999)
    assert parse_frame(frame, 78) is None
    assert parse_frame(frame[:-1], 77) is None
    assert parse_frame(frame[:20], 77) is None
    assert parse_frame(build_frame(MAC, source, server, b"x" * 32), 77) is None


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", 0xFFFF),
        (b"\xff\xff", 0),
        # RFC 1071, section 3: the sum of this example is ddf2.
        (bytes.fromhex("0001f203f4f5f6f7"), 0xFFFF ^ 0xDDF2),
        (b"\x01", 0xFEFF),
    ],
)
def test_the_checksum_is_that_of_rfc_1071(octets: bytes, expected: int) -> None:
    assert checksum(octets) == expected


def test_who_forwarded_a_number_second_is_noted_once_and_what_has_no_room_is_counted() -> None:
    notes = Forwardings(dual_max=2)
    for seq in range(4):
        notes.note(seq, 10 * seq, 0, 100 * seq)
        notes.note(seq, 10 * seq, 0, 100 * seq + 1)  # Twice by the same gateway: no second.
    assert (notes.dual, notes.unnoted, notes.distinct) == ([], 0, 4)
    for seq in range(4):
        notes.note(seq, 10 * seq, 1, 100 * seq + 50)
    notes.note(0, 0, 1, 60)  # Noted already.
    assert notes.dual == [DualFrame(0, 0, 50), DualFrame(1, 10, 50)]
    assert notes.unnoted == 2
