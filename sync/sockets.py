"""Sockets with an option that Python or libzmq has no word for. Shell."""

from __future__ import annotations

import ctypes
import socket
import struct

from sync.event_filter import INSTRUCTION_BYTES

__all__ = ["attach_filter", "is_ipv6", "literal", "segmented"]

_SO_ATTACH_FILTER = 26
BACKLOG = 100
"""As ZMQ_BACKLOG."""


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """From now on. Raises OSError."""
    held = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    option = struct.pack("@HP", len(program) // INSTRUCTION_BYTES, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def is_ipv6(address: str) -> bool:
    """Of an address as text."""
    return ":" in address


def literal(address: str) -> str:
    """As it stands in an endpoint."""
    return f"[{address}]" if is_ipv6(address) else address


def segmented(endpoint: str, segment: int) -> socket.socket:
    """For `endpoint`, as libzmq writes it; it takes the descriptor. A path that carries
    less than the devices at its ends, and says nothing of it (`sync.paths`), swallows full
    segments; the listener's bound goes into its SYN,ACK, so that it holds both ways. Raises
    OSError."""
    address, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    address = address.strip("[]")
    family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        sock.bind((address, int(port)))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
