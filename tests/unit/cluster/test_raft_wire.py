"""Raft's datagrams: nothing that is not sealed is decoded, nothing that runs code can be said."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.assignment import Leave, encode
from cluster.raft_wire import (
    HEAD,
    NO_OP,
    REGULAR,
    Assembler,
    Part,
    Wire,
    WireError,
    check_command,
    decode_message,
    encode_message,
    split,
)

KEY = bytes(range(32))
PART = Part(7, True, 3, 0, 1, b"data")
MARK = "unpickled"
COMMAND = REGULAR + encode(Leave("gw1"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


def wire(node: int = 1, key: bytes = KEY, cluster: int = 5) -> Wire:
    return Wire(key, cluster_id=cluster, node_id=node)


def test_what_is_sealed_opens_with_the_same_key_alone() -> None:
    datagram = wire(1).seal(2, 99, 3, PART)
    assert wire(2).head(datagram) == (1, 2, 99, 3)
    assert wire(2).open(datagram) == PART
    with pytest.raises(WireError, match="bad_tag"):
        wire(2, key=bytes(32)).open(datagram)
    with pytest.raises(WireError, match="wrong_cluster"):
        wire(2, cluster=6).open(datagram)


@given(st.integers(0, 80), st.integers(1, 255))
def test_no_byte_can_be_changed(place: int, change: int) -> None:
    datagram = bytearray(wire(1).seal(2, 99, 3, PART))
    datagram[place % len(datagram)] ^= change
    with pytest.raises(WireError):
        wire(2).open(bytes(datagram))


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(WireError):
        wire(2).open(garbage)
    with pytest.raises(WireError):
        decode_message(garbage)


@given(st.binary(max_size=9000))
def test_parts_make_the_message_again(message: bytes) -> None:
    assembler = Assembler()
    parts = split(message)
    made = [assembler.add(Part(0, False, 5, n, len(parts), d)) for n, d in enumerate(parts)]
    assert made == [None] * (len(parts) - 1) + [message]


def test_a_message_with_a_gap_is_dropped_and_the_next_one_is_not() -> None:
    assembler = Assembler()
    one, other = split(b"a" * 3000), split(b"b" * 3000)
    assert assembler.add(Part(0, False, 1, 0, 3, one[0])) is None
    assert assembler.add(Part(0, False, 1, 2, 3, one[2])) is None
    assert assembler.add(Part(0, False, 4, 0, 3, other[0])) is None
    assert assembler.add(Part(0, False, 1, 1, 3, one[1])) is None, "of an older message"
    assert assembler.add(Part(0, False, 7, 0, 1, b"c")) == b"c"


@pytest.mark.parametrize(
    "message",
    [
        {"type": "request_vote", "term": 2, "last_log_index": 3, "last_log_term": 1},
        {"type": "response_vote", "term": 2},
        {"type": "append_entries", "term": 1, "commit_index": 1, "entries": [[COMMAND, 2, 1]],
         "prevLogIdx": 1, "prevLogTerm": 1},
        {"type": "append_entries", "term": 1, "commit_index": 1, "entries": [],
         "prevLogIdx": None, "prevLogTerm": None},
        {"type": "append_entries", "term": 1, "commit_index": 1,
         "serialized": [b"dump", True, False]},
        {"type": "append_entries", "term": 1, "commit_index": 1, "serialized": None},
        {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True},
        {"type": "apply_command", "command": COMMAND, "request_id": 4},
        {"type": "apply_command_response", "request_id": 4, "error": 2},
        {"type": "apply_command_response", "request_id": 4, "log_idx": 2, "log_term": 2},
    ],
)  # fmt: skip
def test_what_pysyncobj_sends_comes_through(message: dict[str, Any]) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "append_entries", "term": "1", "commit_index": 1}, "malformed_message"),
        ({"type": "append_entries", "term": -1, "commit_index": 1}, "malformed_message"),
        ({"type": "append_entries", "term": 1, "commit_index": 1, "transmission": "finish",
          "data": b""}, "malformed_message"),
        ({"type": "timeout_now", "term": 1}, "malformed_message"),
        ({"type": "status"}, "malformed_message"),
        ({"type": "apply_command_response", "request_id": 1}, "malformed_message"),
        ({"type": "apply_command", "command": NO_OP}, "forged_command"),
    ],
)  # fmt: skip
def test_what_it_does_not_is_refused_whoever_has_the_key(
    message: dict[str, Any], reason: str
) -> None:
    with pytest.raises(WireError, match=reason):
        decode_message(encode_message(message))


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_a_pickle_is_no_command_of_any_kind(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 and 3 are pysyncobj's own for members and versions: it would unpickle both."""
    monkeypatch.chdir(tmp_path)
    forged = bytes([kind]) + pickle.dumps(Evil(), 2)
    with pytest.raises(WireError, match="forged_command"):
        check_command(forged)
    entry = {"type": "append_entries", "term": 1, "commit_index": 1, "prevLogIdx": 1,
             "prevLogTerm": 1, "entries": [[COMMAND, 2, 1], [forged, 3, 1]]}  # fmt: skip
    with pytest.raises(WireError, match="forged_command"):
        decode_message(encode_message(entry))
    assert not Path(MARK).exists()
    pickle.loads(forged[1:])
    assert Path(MARK).is_dir(), "it would have been seen"


def test_a_session_and_a_number_are_never_used_twice_with_one_key() -> None:
    """The nonce is the number alone, so the key must differ by sender and session."""
    sealed = {
        wire(node).seal(2, session, 3, PART)[HEAD.size :] for node in (1, 9) for session in (8, 9)
    }
    assert len(sealed) == 4
