"""What probes send, so that a wrong byte is seen: streams and frames of known content.

Stream of a salt: chunks of `CHUNK_BYTES`; chunk i is 16 bytes (salt, i; big-endian), then a slice
of a fixed block of noise whose offset depends on both. So every byte depends on its position, and
checking is a memory comparison.

Frame, `FRAME_BYTES` = 64 bytes, for echo, UDP and ICMP probes:
magic 4, flow 4, seq 8, send time (CLOCK_BOOTTIME ns) 8, noise by (flow, seq) 40.

Hello, `HELLO_BYTES` = 24 bytes, the first of a TCP probe: magic 4, kind 4, flow 4, salt 8, bytes a
second 4 (for the side that produces a stream).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "ANSWER",
    "CHUNK_BYTES",
    "FRAME_BYTES",
    "HELLO_BYTES",
    "REQUEST",
    "Frame",
    "Hello",
    "HelloKind",
    "StreamCheck",
    "decode_frame",
    "decode_hello",
    "encode_frame",
    "encode_hello",
    "stream_slice",
]

CHUNK_BYTES = 16384
FRAME_BYTES = 64
HELLO_BYTES = 24
REQUEST = b"hfq1"
ANSWER = b"hfa1"
_HELLO = b"hfhi"
_NOISE = hashlib.shake_256(b"hafw probe noise 1").digest(1 << 20)
_CHUNK_HEADER = struct.Struct("!QQ")
_FRAME_HEADER = struct.Struct("!4sIQQ")
_HELLO_FORMAT = struct.Struct("!4sIIQI")
_FRAME_NOISE_BYTES = FRAME_BYTES - _FRAME_HEADER.size
# Odd numbers, so that neighbouring positions and flows get far-apart slices.
_STEP = 7919
_FLOW_STEP = 104729


class HelloKind(IntEnum):
    """What the accepting side of a TCP probe does: answer frames, swallow or produce a stream."""

    ECHO = 1
    UP = 2
    DOWN = 3


@dataclass(frozen=True, slots=True)
class Hello:
    kind: HelloKind
    flow: int
    salt: int
    octets_s: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    flow: int
    seq: int
    sent_ns: int


def encode_hello(hello: Hello) -> bytes:
    return _HELLO_FORMAT.pack(_HELLO, hello.kind, hello.flow, hello.salt, hello.octets_s)


def decode_hello(octets: bytes) -> Hello | None:
    """None for anything that is not a hello."""
    if len(octets) != HELLO_BYTES:
        return None
    magic, kind, flow, salt, octets_s = _HELLO_FORMAT.unpack(octets)
    if magic != _HELLO or kind not in set(HelloKind):
        return None
    return Hello(HelloKind(kind), flow, salt, octets_s)


def encode_frame(magic: bytes, frame: Frame) -> bytes:
    header = _FRAME_HEADER.pack(magic, frame.flow, frame.seq, frame.sent_ns)
    return header + _frame_noise(frame.flow, frame.seq)


def decode_frame(magic: bytes, octets: bytes) -> Frame | None:
    """None if the magic, the length or any byte of the noise is wrong."""
    if len(octets) != FRAME_BYTES:
        return None
    found, flow, seq, sent_ns = _FRAME_HEADER.unpack_from(octets)
    if found != magic or octets[_FRAME_HEADER.size :] != _frame_noise(flow, seq):
        return None
    return Frame(flow, seq, sent_ns)


def stream_slice(salt: int, position: int, size: int) -> bytes:
    """Bytes [position, position + size) of the stream of `salt`."""
    pieces = []
    while size > 0:
        index, inside = divmod(position, CHUNK_BYTES)
        piece = _chunk(salt, index)[inside : inside + size]
        pieces.append(piece)
        position += len(piece)
        size -= len(piece)
    return b"".join(pieces)


class StreamCheck:
    """Compares what arrives with the stream of a salt. `position` counts right bytes."""

    def __init__(self, salt: int) -> None:
        self._salt = salt
        self.position = 0

    def feed(self, octets: bytes) -> str | None:
        """None, or which byte of the stream is the first wrong one."""
        expected = stream_slice(self._salt, self.position, len(octets))
        if octets == expected:
            self.position += len(octets)
            return None
        first = next(i for i, octet in enumerate(octets) if octet != expected[i])
        self.position += first
        return f"byte {self.position} of the stream is {octets[first]:#04x}, not " + (
            f"{expected[first]:#04x}"
        )


def _chunk(salt: int, index: int) -> bytes:
    size = CHUNK_BYTES - _CHUNK_HEADER.size
    offset = (salt + index * _STEP) % (len(_NOISE) - size)
    return _CHUNK_HEADER.pack(salt, index) + _NOISE[offset : offset + size]


def _frame_noise(flow: int, seq: int) -> bytes:
    offset = (flow * _FLOW_STEP + seq * _STEP) % (len(_NOISE) - _FRAME_NOISE_BYTES)
    return _NOISE[offset : offset + _FRAME_NOISE_BYTES]
