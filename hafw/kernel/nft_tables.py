"""Is an nftables table of ours in the kernel? One netlink question (some 20 µs), so that hafwd can
look every second without loading libnftables.

linux/netfilter/nf_tables.h: NFT_MSG_GETTABLE with NFTA_TABLE_NAME, answered with NFT_MSG_NEWTABLE
or an error (ENOENT: no such table).
"""

from __future__ import annotations

import errno
import socket
import struct

from hafw.errors import KernelError

__all__ = ["inet_table_exists"]

_NETLINK_NETFILTER = 12
_NLM_F_REQUEST = 0x1
_NLMSG_ERROR = 2
_GETTABLE = 10 << 8 | 1
_NFPROTO_INET = 1
_NFTA_TABLE_NAME = 1


def inet_table_exists(name: str) -> bool:
    """In the network namespace of the calling thread. Raises KernelError."""
    text = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(text), _NFTA_TABLE_NAME) + text
    attribute += bytes(-len(attribute) % 4)
    body = struct.pack("=BBH", _NFPROTO_INET, 0, 0) + attribute
    header = struct.pack("=IHHII", 16 + len(body), _GETTABLE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(5)
            netlink.send(header + body)
            answer = netlink.recv(65536)
    except OSError as error:
        raise KernelError(
            error.errno or errno.EIO, "asking for a table", f"inet {name}", "is nf_tables there?"
        ) from None
    if struct.unpack_from("=H", answer, 4)[0] != _NLMSG_ERROR:
        return True
    code = -int(struct.unpack_from("=i", answer, 16)[0])
    if code == errno.ENOENT:
        return False
    raise KernelError(code, "asking for a table", f"inet {name}")
