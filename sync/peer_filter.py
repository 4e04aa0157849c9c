"""The socket filter of a sync link or segment: what does not come from a peer's address is dropped
before it is queued. Pure.

It proves nothing, for an address can be forged; the tag proves. But whoever floods from another
address costs syncd nothing and fills no queue of its. Classic BPF as in `sync.event_filter`.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

from sync.event_filter import Line, assemble

__all__ = ["peer_filter"]

_LD_WORD, _JEQ, _RET = 0x20, 0x15, 0x06
_NETWORK = 0xFFF00000
"""SKF_NET_OFF: a UDP socket's filter begins at the UDP header; this is the IP header."""
_SOURCE_AT, _SOURCE_AT_V6 = 12, 8
_WHOLE = 0xFFFFFFFF


def peer_filter(addresses: Collection[str]) -> bytes:
    """The program: datagrams of these addresses, all of one family, pass, at most 250 of them."""
    assert len(addresses) <= 250, "a jump reaches 255 instructions"
    sources = [ip_address(address) for address in sorted(addresses)]
    longer = [address for address in sources if isinstance(address, IPv6Address)]
    if longer:
        assert len(longer) == len(sources), "a socket has one family"
        return _filter_v6(longer)
    lines: list[Line | str] = [(_LD_WORD, "", "", _NETWORK + _SOURCE_AT)]
    lines += [(_JEQ, "pass", "", int(IPv4Address(address))) for address in sorted(addresses)]
    # (assemble puts "pass" next, and this must not fall into it.)
    lines.append((_JEQ, "drop", "drop", 0))
    return assemble(lines)


def _filter_v6(sources: list[IPv6Address]) -> bytes:
    lines: list[Line | str] = []
    for place, source in enumerate(sources):
        for at in range(0, 16, 4):
            word = int.from_bytes(source.packed[at : at + 4], "big")
            lines.append((_LD_WORD, "", "", _NETWORK + _SOURCE_AT_V6 + at))
            lines.append((_JEQ, "", f"not {place}", word))
        lines += [(_RET, "", "", _WHOLE), f"not {place}"]
    lines.append((_JEQ, "drop", "drop", 0))
    return assemble(lines)
