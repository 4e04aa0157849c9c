"""The sysctls a gateway needs, set, checked and explained. /proc/sys/net is of the network
namespace of the reading thread.

Strict TCP (`tcp_loose`, `be_liberal` off) is what makes replication provable: with the kernel's
defaults a connection is picked up mid-stream without any replica. For ARP and reverse path the
kernel takes the larger of ``all`` and the device's value (Documentation/networking/ip-sysctl.rst),
so both are set.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hafw.errors import KernelError

__all__ = [
    "GATEWAY",
    "PHYSICAL",
    "VIRTUAL",
    "Sysctl",
    "apply",
    "device_sysctls",
    "differences",
    "disable_forwarding",
    "enable_forwarding",
    "read",
    "write",
]

_ROOT = Path("/proc/sys")


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A key, written with slashes as below /proc/sys, the value it must have, and why."""

    key: str
    value: str
    why: str


GATEWAY = (
    Sysctl("net/netfilter/nf_conntrack_tcp_loose", "0", "no pick-up of a connection mid-stream"),
    Sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "0", "windows are checked"),
    Sysctl("net/netfilter/nf_conntrack_events", "1", "flows born before syncd listens speak too"),
    Sysctl("net/ipv4/conf/all/arp_ignore", "1", "a BACKUP must not answer ARP for a VIP"),
    Sysctl("net/ipv4/conf/all/arp_announce", "2", "ARP never names a VIP from another device"),
    Sysctl("net/ipv4/conf/all/rp_filter", "0", "packets come in by the virtual MAC device"),
    Sysctl("net/ipv4/conf/all/send_redirects", "0", "hosts must not learn a node's own address"),
    Sysctl("net/ipv4/conf/all/accept_redirects", "0", "a router takes no redirects"),
)
PHYSICAL = (
    Sysctl("net/ipv4/conf/{}/arp_ignore", "1", "a BACKUP must not answer ARP for a VIP"),
    Sysctl("net/ipv4/conf/{}/arp_announce", "2", "ARP never names a VIP from another device"),
    Sysctl("net/ipv4/conf/{}/rp_filter", "0", "packets come in by the virtual MAC device"),
    Sysctl("net/ipv4/conf/{}/send_redirects", "0", "hosts must not learn a node's own address"),
    Sysctl("net/ipv6/conf/{}/accept_ra", "0", "a gateway takes no router advertisements"),
)
VIRTUAL = (
    *PHYSICAL,
    Sysctl("net/ipv6/conf/{}/addr_gen_mode", "1", "no link-local but the virtual one"),
    Sysctl("net/ipv6/conf/{}/autoconf", "0", "no address but the VIPs"),
    Sysctl("net/ipv6/conf/{}/accept_dad", "0", "every gateway has the same addresses"),
    Sysctl("net/ipv6/conf/{}/dad_transmits", "0", "every gateway has the same addresses"),
    Sysctl("net/ipv6/conf/{}/router_solicitations", "0", "a gateway asks for no router"),
)
_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def device_sysctls(template: Iterable[Sysctl], device: str) -> list[Sysctl]:
    """`PHYSICAL` or `VIRTUAL` for one device."""
    return [Sysctl(s.key.format(device), s.value, s.why) for s in template]


def read(key: str) -> str:
    """KernelError if there is no such key here."""
    try:
        return (_ROOT / key).read_text().strip()
    except OSError as error:
        raise KernelError(
            error.errno or errno.EIO, "reading a sysctl", key, _hint(key, error)
        ) from None


def write(key: str, value: str) -> None:
    """KernelError if there is no such key here or it may not be written."""
    try:
        (_ROOT / key).write_text(value)
    except OSError as error:
        raise KernelError(
            error.errno or errno.EIO, f"setting a sysctl to {value}", key, _hint(key, error)
        ) from None


def _hint(key: str, error: OSError) -> str | None:
    if isinstance(error, FileNotFoundError):
        if "/netfilter/" in key:
            return "the kernel needs connection tracking (modprobe nf_conntrack)"
        if "/ipv6/" in key:
            return "the kernel needs IPv6, and the device must be there"
        return "the device must be there"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "it needs root and a writable /proc/sys (in a container: set it from outside)"
    return None


def differences(wanted: Iterable[Sysctl]) -> list[Sysctl]:
    """Those whose value is another one. KernelError if a key is missing."""
    return [sysctl for sysctl in wanted if read(sysctl.key) != sysctl.value]


def apply(wanted: Iterable[Sysctl]) -> list[Sysctl]:
    """Set what differs; returns what was set. KernelError."""
    changed = differences(wanted)
    for sysctl in changed:
        write(sysctl.key, sysctl.value)
    return changed


def enable_forwarding() -> bool:
    """Let this node forward, both families; call it once a policy is loaded. True if it was off.

    Before a policy is loaded a forwarding node is an open router, so node set-up does not do it.
    """
    changed = False
    for key in _FORWARDING:
        if read(key) != "1":
            write(key, "1")
            changed = True
    return changed


def disable_forwarding() -> None:
    """Forward nothing. KernelError.

    net/ipv4/devinet.c, inet_forward_change: a node that does not forward is made to accept
    redirects; it is a gateway still, and forwards again in a moment.
    """
    for key in _FORWARDING:
        if read(key) != "0":
            write(key, "0")
    apply(setting for setting in GATEWAY if setting.key.endswith("/accept_redirects"))
