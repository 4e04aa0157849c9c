"""The services that need no declaration. A policy may replace each by its own."""

from __future__ import annotations

from typing import Any

__all__ = ["BUILT_IN"]

BUILT_IN: dict[str, dict[str, list[Any]]] = {
    "bgp": {"tcp": [179]},
    "dhcp": {"udp": [67]},
    "dns": {"tcp": [53], "udp": [53]},
    "ftp": {"tcp": [21]},
    "gre": {"protocols": ["gre"]},
    "http": {"tcp": [80]},
    "https": {"tcp": [443], "udp": [443]},
    "imap": {"tcp": [143]},
    "imaps": {"tcp": [993]},
    "ipsec": {"udp": [500, 4500], "protocols": ["esp", "ah"]},
    "kerberos": {"tcp": [88], "udp": [88]},
    "ldap": {"tcp": [389]},
    "ldaps": {"tcp": [636]},
    "mysql": {"tcp": [3306]},
    "ntp": {"udp": [123]},
    "openvpn": {"udp": [1194]},
    "ping": {"icmp": ["echo-request"], "icmpv6": ["echo-request"]},
    "pop3": {"tcp": [110]},
    "pop3s": {"tcp": [995]},
    "postgresql": {"tcp": [5432]},
    "rdp": {"tcp": [3389], "udp": [3389]},
    "sip": {"tcp": [5060], "udp": [5060]},
    "smb": {"tcp": [445]},
    "smtp": {"tcp": [25]},
    "snmp": {"udp": [161]},
    "ssh": {"tcp": [22]},
    "submission": {"tcp": [465, 587]},
    "syslog": {"udp": [514]},
    "telnet": {"tcp": [23]},
    "tftp": {"udp": [69]},
    "traceroute": {"udp": ["33434-33534"]},
    "wireguard": {"udp": [51820]},
}
