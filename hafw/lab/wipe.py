"""What a power cut takes from a node, and only that: its kernel state.

Processes are killed elsewhere (`hafw.lab.inside`); this removes, in this order, the virtual MAC
devices (before the pins: a device that outlived its gate's pin would be open), our nft tables,
all conntrack entries and expectations, the neighbour tables, and the pins.
"""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess

from pyroute2 import IPRoute, NetlinkError

from hafw.errors import KernelError, StateError
from hafw.lab.inside import call_in, namespace_path
from hafw.paths import NodePaths

__all__ = ["clear_kernel_state", "remove_pins", "remove_vmac_devices"]

TABLE_PREFIX = "hafw_"
NFT_WAIT_S = 30
ACK_WAIT_S = 30

NETLINK_NETFILTER = 12
NFNL_SUBSYS_CTNETLINK = 1
NFNL_SUBSYS_CTNETLINK_EXP = 2
DELETE = 2  # IPCTNL_MSG_CT_DELETE and IPCTNL_MSG_EXP_DELETE
NLM_F_REQUEST_ACK = 0x5
NLMSG_ERROR = 2


def remove_vmac_devices(namespace: str) -> list[str]:
    """Delete the macvlan devices of a namespace (hafw's are the only ones in the lab)."""
    return call_in(namespace, _remove_macvlans)


def _remove_macvlans() -> list[str]:
    removed = []
    with IPRoute() as ipr:
        for link in list(ipr.link("dump")):
            linkinfo = link.get("linkinfo")
            if linkinfo is None or linkinfo.get("kind") != "macvlan":
                continue
            try:
                ipr.link("del", index=link["index"])
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise KernelError(
                        error.code, "the removal of a device", link.get("ifname")
                    ) from None
            removed.append(str(link.get("ifname")))
    return removed


def remove_pins(paths: NodePaths) -> None:
    """Remove a node's folder in bpffs, after its devices."""
    try:
        shutil.rmtree(paths.bpf)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateError(f"cannot remove {error.filename}: {error.strerror}") from None


def clear_kernel_state(namespace: str) -> None:
    """Everything in the kernel that a node would lose by a power cut, but for its pins."""
    remove_vmac_devices(namespace)
    _delete_tables(namespace)
    call_in(namespace, _flush_conntrack)
    call_in(namespace, _flush_neighbours)


def _delete_tables(namespace: str) -> None:
    nft = ["nsenter", f"--net={namespace_path(namespace)}", "nft"]
    listed = subprocess.run(
        [*nft, "list", "tables"], capture_output=True, text=True, timeout=NFT_WAIT_S, check=False
    )
    if listed.returncode != 0:
        raise StateError(f"nft list tables failed in {namespace}: {listed.stderr.strip()}")
    ours = [
        line.removeprefix("table ")
        for line in listed.stdout.splitlines()
        if line.split()[-1].startswith(TABLE_PREFIX)
    ]
    if not ours:
        return
    deleted = subprocess.run(
        [*nft, "-f", "-"], input="".join(f"delete table {table}\n" for table in ours),
        capture_output=True, text=True, timeout=NFT_WAIT_S, check=False,
    )  # fmt: skip
    if deleted.returncode != 0:
        raise StateError(f"nft delete table failed in {namespace}: {deleted.stderr.strip()}")


def _flush_conntrack() -> None:
    """One delete without a tuple flushes the table (nf_conntrack_netlink.c, ctnetlink_del)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(ACK_WAIT_S)
        netlink.bind((0, 0))
        for subsystem in (NFNL_SUBSYS_CTNETLINK_EXP, NFNL_SUBSYS_CTNETLINK):
            kind = subsystem << 8 | DELETE
            nfgenmsg = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
            header = struct.pack("=IHHII", 16 + len(nfgenmsg), kind, NLM_F_REQUEST_ACK, 1, 0)
            netlink.send(header + nfgenmsg)
            answer = netlink.recv(4096)
            code = struct.unpack_from("=i", answer, 16)[0]
            assert struct.unpack_from("=H", answer, 4)[0] == NLMSG_ERROR, answer
            if code != 0:
                raise KernelError(-code, "the flush of the conntrack table", "this node")


def _flush_neighbours() -> None:
    with IPRoute() as ipr:
        for family in (socket.AF_INET, socket.AF_INET6):
            for neighbour in list(ipr.get_neighbours(family=family)):
                try:
                    ipr.neigh(
                        "del", dst=neighbour.get("dst"), ifindex=neighbour["ifindex"],
                        family=family,
                    )  # fmt: skip
                except NetlinkError as error:
                    if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
                        raise KernelError(
                            error.code, "the removal of a neighbour", str(neighbour.get("dst"))
                        ) from None
