"""The socket filter of a sync link: what does not come from a peer's address is dropped before it
is queued. Pure.

It proves nothing, for an address can be forged; the tag proves. But whoever floods from another
address costs syncd nothing and fills no queue of its. Classic BPF as in `sync.event_filter`.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address

from sync.event_filter import Line, assemble

__all__ = ["peer_filter"]

_LD_WORD, _JEQ = 0x20, 0x15
_NETWORK = 0xFFF00000
"""SKF_NET_OFF: a UDP socket's filter begins at the UDP header; this is the IP header."""
_SOURCE_AT = 12


def peer_filter(addresses: Collection[str]) -> bytes:
    """The program: datagrams of these IPv4 addresses pass, at most 250 of them."""
    assert len(addresses) <= 250, "a jump reaches 255 instructions"
    lines: list[Line | str] = [(_LD_WORD, "", "", _NETWORK + _SOURCE_AT)]
    lines += [(_JEQ, "pass", "", int(IPv4Address(address))) for address in sorted(addresses)]
    # (assemble puts "pass" next, and this must not fall into it.)
    lines.append((_JEQ, "drop", "drop", 0))
    return assemble(lines)
