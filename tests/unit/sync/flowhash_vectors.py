"""Test vectors of the two flow hashes, for every implementation of them.

Made by hand from the definition in `sync.flowhash` (a sum of powers, not Horner's rule).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from hafw.flow import AF_INET, AF_INET6, FlowEntry, FlowKey, Tuple

COUNTING = bytes(range(1, 33))
ZEROS = bytes(32)
"""k would be 0, and is 1."""
ONES = b"\xff" * 32
"""k is taken mod p."""


@dataclass(frozen=True)
class Vector:
    secret: bytes
    entry: FlowEntry
    incarnation: int
    flow_text: str
    contribution_text: str
    """The canonical texts, in hex."""
    flow: int
    contribution: int


def _tuple(proto: int, src: str, sport: int, dst: str, dport: int) -> Tuple:
    one, other = ip_address(src), ip_address(dst)
    family = AF_INET if one.version == 4 else AF_INET6
    return Tuple(family, proto, one.packed, other.packed, sport, dport)


def _entry(
    zone: int,
    proto: int,
    orig: tuple[str, int, str, int],
    reply: tuple[str, int, str, int],
    helper: str | None = None,
) -> FlowEntry:
    return FlowEntry(FlowKey(zone, _tuple(proto, *orig)), _tuple(proto, *reply), 0, helper=helper)


ENTRIES = (
    (
        _entry(
            0,
            6,
            ("192.0.2.9", 1024, "198.51.100.1", 80),
            ("198.51.100.1", 80, "198.51.100.254", 30000),
        ),
        0xA1B2C3D4,
    ),
    (
        _entry(
            0,
            17,
            ("192.0.2.9", 53000, "198.51.100.1", 53),
            ("198.51.100.1", 53, "192.0.2.9", 53000),
        ),
        0x1,
    ),
    (
        _entry(
            0,
            6,
            ("192.0.2.9", 1025, "198.51.100.1", 21),
            ("198.51.100.1", 21, "198.51.100.254", 1025),
            "ftp",
        ),
        0xFFFFFFFF,
    ),
    (
        _entry(
            7,
            1,
            ("192.0.2.9", 77, "198.51.100.1", 2048),
            ("198.51.100.1", 77, "198.51.100.254", 0),
        ),
        0x0,
    ),
    (
        _entry(
            0,
            6,
            ("2001:db8:1::10", 40000, "2001:db8:2::10", 443),
            ("2001:db8:2::10", 443, "2001:db8:2::fe", 50000),
        ),
        0x5,
    ),
    (
        _entry(
            65535,
            17,
            ("2001:db8:1::10", 40000, "2001:db8:2::10", 69),
            ("2001:db8:2::10", 69, "2001:db8:1::10", 40000),
            "tftp",
        ),
        0x5,
    ),
    (_entry(0, 47, ("0.0.0.0", 0, "0.0.0.0", 0), ("0.0.0.0", 0, "0.0.0.0", 0)), 0x0),
    (
        _entry(
            0,
            6,
            ("255.255.255.255", 65535, "255.255.255.255", 65535),
            ("255.255.255.255", 65535, "255.255.255.255", 65535),
            "netbios-ns-15by",
        ),
        0xFFFFFFFF,
    ),
)
"""Flow and incarnation."""

_TEXTS = (
    (
        "00000406c0000209c633640104000050",
        "00000406c0000209c633640104000050a1b2c3d4c6336401c63364fe00507530",
    ),
    (
        "00000411c0000209c6336401cf080035",
        "00000411c0000209c6336401cf08003500000001c6336401c00002090035cf08",
    ),
    (
        "00000406c0000209c633640104010015",
        "00000406c0000209c633640104010015ffffffffc6336401c63364fe00150401667470",
    ),
    (
        "00070401c0000209c6336401004d0800",
        "00070401c0000209c6336401004d080000000000c6336401c63364fe004d0000",
    ),
    (
        "0000060620010db800010000000000000000001020010db80002000000000000000000109c4001bb",
        "0000060620010db800010000000000000000001020010db80002000000000000000000109c4001bb0000000520010db800020000000000000000001020010db80002000000000000000000fe01bbc350",
    ),
    (
        "ffff061120010db800010000000000000000001020010db80002000000000000000000109c400045",
        "ffff061120010db800010000000000000000001020010db80002000000000000000000109c4000450000000520010db800020000000000000000001020010db800010000000000000000001000459c4074667470",
    ),
    (
        "0000042f000000000000000000000000",
        "0000042f00000000000000000000000000000000000000000000000000000000",
    ),
    (
        "00000406ffffffffffffffffffffffff",
        "00000406ffffffffffffffffffffffffffffffffffffffffffffffffffffffff6e657462696f732d6e732d31356279",
    ),
)

_HASHES = {
    COUNTING: (
        (0x6D8329E52033D012, 0x99F9907AD956142B),
        (0x04FEE70F1ECCF6B3, 0x087A5ADCC90A8DB5),
        (0x44410DFD1BB2B0CD, 0x2B34640FCDD045B7),
        (0xD7347FB54AC2A9B3, 0x627B7B6943A7C5ED),
        (0x54E49CCEC4392C4F, 0x879F21ACFA3BFCB3),
        (0x39AFFB57CDEEA08F, 0x1EE849B36B677F7D),
        (0x81FDB0A13AA65315, 0xA611B927FE3D558E),
        (0x623ECCD576DAA3E0, 0x0A1BB410EEFC0E5C),
    ),
    ZEROS: (
        (0x9B67D0BC5814A56B, 0xD95D688784327BF8),
        (0x4918CF6DC1F873C7, 0xF6F869C65D610A9B),
        (0x2495A9F3AC3CC498, 0x0EE18CFC2459F2C3),
        (0xD5410C0A9893E237, 0x40464C5A6A74DEAB),
        (0x2BABB7A8149EAC23, 0x56DD02BFE8B96949),
        (0x71A68B861613B977, 0x507CC697A096CB2B),
        (0x30404982D4FB6FDD, 0xB961CE361BC08C7E),
        (0x30A3633D9F62B4AF, 0xE8625A85629797F1),
    ),
    ONES: (
        (0x4511D91FC3BE9DF3, 0x3A471341CD73648C),
        (0x9E76B050D257CB42, 0x98756BF172B0A5FF),
        (0x741B7D32DA72172D, 0xDB20551F9B895F12),
        (0xECD99B2B9B620C1F, 0xADA070906E42CAF2),
        (0x6006B97661621FF2, 0xEE69730334C18DAD),
        (0xA7973D57C49C49D8, 0xE654977E769541DD),
        (0x4067B3DC882BE65D, 0x14B7715D6EF8AF1C),
        (0xA454EEF6B4EA4F81, 0xE45E18303869E3FD),
    ),
}

VECTORS = tuple(
    Vector(secret, entry, incarnation, *texts, *hashes)
    for secret, rows in _HASHES.items()
    for (entry, incarnation), texts, hashes in zip(ENTRIES, _TEXTS, rows, strict=True)
)
