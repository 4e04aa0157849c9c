"""Numbers and fixed byte layouts of ctnetlink messages, shared by the parser and the builder.

Sources: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h and,
for the order in which the kernel writes attributes, net/netfilter/nf_conntrack_netlink.c. Headers
are in host order, every value inside an attribute is in network order.
"""

from __future__ import annotations

import struct

__all__: list[str] = []  # private to sync.ctnetlink*

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300

SUBSYS_CTNETLINK = 1
CT_NEW = SUBSYS_CTNETLINK << 8 | 0
CT_GET = SUBSYS_CTNETLINK << 8 | 1
CT_DELETE = SUBSYS_CTNETLINK << 8 | 2

SUBSYS_CTNETLINK_EXP = 2
EXP_NEW = SUBSYS_CTNETLINK_EXP << 8 | 0
EXP_GET = SUBSYS_CTNETLINK_EXP << 8 | 1
EXP_DELETE = SUBSYS_CTNETLINK_EXP << 8 | 2

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

CTA_TUPLE_ORIG = 1
CTA_TUPLE_REPLY = 2
CTA_STATUS = 3
CTA_PROTOINFO = 4
CTA_HELP = 5
CTA_NAT_SRC = 6
CTA_TIMEOUT = 7
CTA_MARK = 8
CTA_ID = 12
CTA_NAT_DST = 13
CTA_TUPLE_MASTER = 14
CTA_SEQ_ADJ_ORIG = 15
CTA_SEQ_ADJ_REPLY = 16
CTA_ZONE = 18
CTA_MARK_MASK = 21
CTA_LABELS = 22
CTA_SYNPROXY = 24
CTA_TIMESTAMP_EVENT = 27

CTA_TUPLE_IP = 1
CTA_TUPLE_PROTO = 2
CTA_TUPLE_ZONE = 3
CTA_IP_V4_SRC = 1
CTA_IP_V4_DST = 2
CTA_IP_V6_SRC = 3
CTA_IP_V6_DST = 4
CTA_PROTO_NUM = 1
CTA_PROTO_SRC_PORT = 2
CTA_PROTO_DST_PORT = 3
CTA_PROTO_ICMP_ID = 4
CTA_PROTO_ICMP_TYPE = 5
CTA_PROTO_ICMP_CODE = 6
CTA_PROTO_ICMPV6_ID = 7
CTA_PROTO_ICMPV6_TYPE = 8
CTA_PROTO_ICMPV6_CODE = 9

CTA_PROTOINFO_TCP = 1
CTA_PROTOINFO_TCP_STATE = 1
CTA_PROTOINFO_TCP_WSCALE_ORIGINAL = 2
CTA_PROTOINFO_TCP_WSCALE_REPLY = 3
CTA_PROTOINFO_TCP_FLAGS_ORIGINAL = 4
CTA_PROTOINFO_TCP_FLAGS_REPLY = 5

CTA_PROTOINFO_SCTP = 3
CTA_PROTOINFO_SCTP_STATE = 1
CTA_PROTOINFO_SCTP_VTAG_ORIGINAL = 2
CTA_PROTOINFO_SCTP_VTAG_REPLY = 3

CTA_NAT_V4_MINIP = 1
CTA_NAT_V4_MAXIP = 2
CTA_NAT_PROTO = 3
CTA_NAT_V6_MINIP = 4
CTA_NAT_V6_MAXIP = 5
CTA_PROTONAT_PORT_MIN = 1
CTA_PROTONAT_PORT_MAX = 2

CTA_HELP_NAME = 1
CTA_SYNPROXY_ISN = 1
CTA_SYNPROXY_ITS = 2
CTA_SYNPROXY_TSOFF = 3
CTA_SEQADJ_CORRECTION_POS = 1
CTA_SEQADJ_OFFSET_BEFORE = 2
CTA_SEQADJ_OFFSET_AFTER = 3

CTA_EXPECT_MASTER = 1
CTA_EXPECT_TUPLE = 2
CTA_EXPECT_MASK = 3
CTA_EXPECT_TIMEOUT = 4
CTA_EXPECT_HELP_NAME = 6
CTA_EXPECT_ZONE = 7
CTA_EXPECT_FLAGS = 8
CTA_EXPECT_CLASS = 9
CTA_EXPECT_NAT = 10
CTA_EXPECT_FN = 11
CTA_EXPECT_NAT_DIR = 1
CTA_EXPECT_NAT_TUPLE = 2

PROTOS_WITH_PORTS = frozenset({6, 17, 33, 47, 132, 136})
"""TCP, UDP, DCCP, GRE (its keys), SCTP, UDPlite: two 16-bit keys as CTA_PROTO_SRC/DST_PORT."""

NLMSG = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr + nfgenmsg: family, version, res_id
NLMSG_BYTES = NLMSG.size
HEADER_BYTES = HEADER.size
NLA = struct.Struct("=HH")


def attribute(kind: int, payload_bytes: int) -> bytes:
    """The four header bytes of a plain attribute."""
    return NLA.pack(4 + payload_bytes, kind)


def nest(kind: int, payload_bytes: int) -> bytes:
    """The four header bytes of a nest."""
    return NLA.pack(4 + payload_bytes, kind | NLA_F_NESTED)


# A tuple nest as the kernel writes it, without its own four-byte header. Five constant pieces
# (A..E) stand between the values; they are equal in every tuple of the same shape:
#   A ip nest + src header | src | B dst header | dst | C proto nest + num header | num 3x
#   | D key header | key 2x | E key header | key 2x         (ICMP: type 3x | F header | code 3x)
V4_A = nest(CTA_TUPLE_IP, 16) + attribute(CTA_IP_V4_SRC, 4)
V4_B = attribute(CTA_IP_V4_DST, 4)
V6_A = nest(CTA_TUPLE_IP, 40) + attribute(CTA_IP_V6_SRC, 16)
V6_B = attribute(CTA_IP_V6_DST, 16)
PORTS_C = nest(CTA_TUPLE_PROTO, 24) + attribute(CTA_PROTO_NUM, 1)
PORTS_D = attribute(CTA_PROTO_SRC_PORT, 2)
PORTS_E = attribute(CTA_PROTO_DST_PORT, 2)
ICMP_C = nest(CTA_TUPLE_PROTO, 32) + attribute(CTA_PROTO_NUM, 1)
ICMP_D = attribute(CTA_PROTO_ICMP_ID, 2)
ICMP_E = attribute(CTA_PROTO_ICMP_TYPE, 1)
ICMP_F = attribute(CTA_PROTO_ICMP_CODE, 1)
ICMPV6_D = attribute(CTA_PROTO_ICMPV6_ID, 2)
ICMPV6_E = attribute(CTA_PROTO_ICMPV6_TYPE, 1)
ICMPV6_F = attribute(CTA_PROTO_ICMPV6_CODE, 1)
PLAIN_C = nest(CTA_TUPLE_PROTO, 8) + attribute(CTA_PROTO_NUM, 1)

V4_PORTS = struct.Struct(">8s4s4s4s8sB3x4sH2x4sH2x")
V6_PORTS = struct.Struct(">8s16s4s16s8sB3x4sH2x4sH2x")
V4_ICMP = struct.Struct(">8s4s4s4s8sB3x4sH2x4sB3x4sB3x")
V6_ICMP = struct.Struct(">8s16s4s16s8sB3x4sH2x4sB3x4sB3x")
V4_PLAIN = struct.Struct(">8s4s4s4s8sB3x")
V6_PLAIN = struct.Struct(">8s16s4s16s8sB3x")

# CTA_PROTOINFO of TCP without its own header, in the kernel's order: state, window scales, flags.
TCP_A = nest(CTA_PROTOINFO_TCP, 40) + attribute(CTA_PROTOINFO_TCP_STATE, 1)
TCP_B = attribute(CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, 1)
TCP_C = attribute(CTA_PROTOINFO_TCP_WSCALE_REPLY, 1)
TCP_D = attribute(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, 2)
TCP_E = attribute(CTA_PROTOINFO_TCP_FLAGS_REPLY, 2)
TCP_INFO = struct.Struct(">8sB3x4sB3x4sB3x4sBB2x4sBB2x")

# One translation: min = max address, min = max key.
NAT_PROTO = nest(CTA_NAT_PROTO, 16) + attribute(CTA_PROTONAT_PORT_MIN, 2)
NAT_PORT_MAX = attribute(CTA_PROTONAT_PORT_MAX, 2)
V4_NAT = struct.Struct(">4s4s4s4s4s8sH2x4sH2x")
V6_NAT = struct.Struct(">4s4s16s4s16s8sH2x4sH2x")
V4_NAT_PLAIN = struct.Struct(">4s4s4s4s4s")
V6_NAT_PLAIN = struct.Struct(">4s4s16s4s16s")
V4_NAT_MIN = attribute(CTA_NAT_V4_MINIP, 4)
V4_NAT_MAX = attribute(CTA_NAT_V4_MAXIP, 4)
V6_NAT_MIN = attribute(CTA_NAT_V6_MINIP, 16)
V6_NAT_MAX = attribute(CTA_NAT_V6_MAXIP, 16)

U32 = struct.Struct(">4sI")
U16 = struct.Struct(">4sH2x")
VALUE_U32 = struct.Struct(">I")
VALUE_U16 = struct.Struct(">H")
VALUE_U64 = struct.Struct(">Q")
VALUE_S32 = struct.Struct(">i")
