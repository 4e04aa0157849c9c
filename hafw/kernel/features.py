"""What this kernel and this process lack for a node, each in one sentence with the remedy.

Each probe asks the kernel itself and leaves nothing behind; /boot/config and version numbers are
not believed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster import bpf
from hafw.errors import KernelError

__all__ = ["Probes", "missing_features"]

_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW", 21: "CAP_SYS_ADMIN", 39: "CAP_BPF"}
_WITNESS_CAPABILITIES = {12: "CAP_NET_ADMIN"}

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_NLM_F_REQUEST, _NLM_F_ACK = 0x1, 0x4
_NLM_F_CREATE_EXCL = 0x600
_NLMSG_ERROR = 2
_RTM_NEWLINK = 16
_CTNETLINK_GET_STATS = 1 << 8 | 5
_NF_TABLES_GETGEN = 10 << 8 | 16
_IFLA_LINKINFO, _IFLA_INFO_KIND = 18, 1


def missing_features(
    role: Literal["gateway", "witness"] = "gateway", probes: Probes | None = None
) -> list[str]:
    """Empty if this machine and process can be such a node."""
    asked = probes or Probes()
    wanted = _CAPABILITIES if role == "gateway" else _WITNESS_CAPABILITIES
    lacking = _missing_capabilities(wanted, asked.capabilities())
    if lacking or role == "witness":
        # Without the rights, every probe below would only say so again.
        return lacking
    return [*_missing_bpf(asked), *_missing_netlink(asked)]


def _capabilities() -> int:
    """The effective ones of this process, a bit each."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _make_array() -> None:
    os.close(bpf.create_array("hafw_probe", 4096))


def _missing_capabilities(wanted: dict[int, str], held: int) -> list[str]:
    names = [name for bit, name in wanted.items() if not held >> bit & 1]
    if not names:
        return []
    return [f"this process lacks {', '.join(names)}: run it as root (uid is {os.geteuid()})"]


def _missing_bpf(asked: Probes) -> Iterator[str]:
    try:
        asked.make_array()
    except KernelError as error:
        yield f"BPF arrays that can be mapped: {error} (CONFIG_BPF_SYSCALL, Linux 5.5)"
        return
    if not asked.tcx():
        yield (
            "tcx, the hook the gate sits on, is unknown to this kernel: "
            "Linux 6.6 or newer with CONFIG_NET_XGRESS is needed"
        )


def _missing_netlink(asked: Probes) -> Iterator[str]:
    # nfnetlink answers EINVAL for a subsystem it does not have, after asking for the module.
    nfgenmsg = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    if asked.netlink(_NETLINK_NETFILTER, _NF_TABLES_GETGEN, 0, nfgenmsg) != 0:
        yield "nf_tables does not answer: CONFIG_NF_TABLES (modprobe nf_tables) is needed"
    if asked.netlink(_NETLINK_NETFILTER, _CTNETLINK_GET_STATS, 0, nfgenmsg) != 0:
        yield (
            "conntrack netlink does not answer: CONFIG_NF_CT_NETLINK "
            "(modprobe nf_conntrack_netlink) is needed"
        )
    # Without a device to sit on, a known kind is EINVAL (macvlan_common_newlink) and an unknown
    # one EOPNOTSUPP (rtnl_newlink). No device is made either way.
    kind = b"macvlan\0"
    nested = struct.pack("=HH", 4 + len(kind), _IFLA_INFO_KIND) + kind
    body = bytes(16) + struct.pack("=HH", 4 + len(nested), _IFLA_LINKINFO) + nested
    if asked.netlink(_NETLINK_ROUTE, _RTM_NEWLINK, _NLM_F_CREATE_EXCL, body) == errno.EOPNOTSUPP:
        yield "macvlan is unknown to this kernel: CONFIG_MACVLAN (modprobe macvlan) is needed"


def _ask(protocol: int, kind: int, flags: int, body: bytes) -> int:
    """One request; 0 for an answer or an acknowledgement, else the errno."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
            netlink.settimeout(2)
            header = struct.pack(
                "=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, 1, 0
            )
            netlink.send(header + body)
            answer = netlink.recv(65536)
    except OSError as error:
        return error.errno or errno.EIO
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        return -int(struct.unpack_from("=i", answer, 16)[0])
    return 0


@dataclass(frozen=True, slots=True)
class Probes:
    """The questions to the kernel; tests put other answers in their place."""

    capabilities: Callable[[], int] = _capabilities
    make_array: Callable[[], None] = _make_array
    """Raises KernelError."""
    tcx: Callable[[], bool] = bpf.probe_tcx
    netlink: Callable[[int, int, int, bytes], int] = _ask
    """Protocol, message type, flags, body: 0 or the errno of the answer."""
