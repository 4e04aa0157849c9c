# One flow as plain memory, and what the kernel's byte order needs.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from hafw.flow import FlowEntry, FlowKey, TcpState, Tuple

cdef enum:
    FAMILY_V4 = 2
    FAMILY_V6 = 10
    PROTO_ICMP = 1
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_GRE = 47
    PROTO_ICMPV6 = 58
    PROTO_SCTP = 132
    STATUS_EXPECTED = 1 << 0
    STATUS_SEEN_REPLY = 1 << 1
    STATUS_ASSURED = 1 << 2
    STATUS_CONFIRMED = 1 << 3
    STATUS_SEQ_ADJUST = 1 << 6
    TCP_ESTABLISHED = 3
    TCP_TIME_WAIT = 7
    TCP_CLOSE = 8
    TCP_STATE_NONE = 15
    HELPER_BYTES_MAX = 16
    LABELS_BYTES_MAX = 16

cdef enum:
    # What the reference must handle: `Flow.rich`.
    RICH_MASTER = 1 << 0
    RICH_SEQADJ = 1 << 1
    RICH_EXPECTED = 1 << 2
    RICH_SYNPROXY = 1 << 3
    RICH_HELPER = 1 << 4
    RICH_ODD = 1 << 5
    RICH_SCTP = 1 << 6

cdef struct Flow:
    # hafw.flow.FlowEntry. Addresses as on the wire, keys (ports; ICMP id, type << 8 | code) in
    # host order. A reply of another family or protocol than the original is RICH_ODD.
    uint8_t osrc[16]
    uint8_t odst[16]
    uint8_t rsrc[16]
    uint8_t rdst[16]
    uint32_t status
    uint32_t mark
    uint32_t timeout
    uint32_t kernel_id
    uint32_t rich
    uint16_t zone
    uint16_t osport
    uint16_t odport
    uint16_t rsport
    uint16_t rdport
    uint8_t family
    uint8_t proto
    uint8_t has_timeout
    uint8_t has_kernel_id
    uint8_t has_tcp
    uint8_t tcp_state
    uint8_t wscale_orig
    uint8_t wscale_reply
    uint8_t flags_orig
    uint8_t flags_reply
    uint8_t helper_len
    uint8_t labels_len
    uint8_t helper[16]
    uint8_t labels[16]


cdef inline size_t address_bytes(const Flow* flow) noexcept nogil:
    return 16 if flow.family == FAMILY_V6 else 4


cdef inline uint16_t get16(const uint8_t* at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t get32(const uint8_t* at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline uint64_t get64(const uint8_t* at) noexcept nogil:
    return <uint64_t>get32(at) << 32 | get32(at + 4)


cdef inline void put16(uint8_t* at, uint16_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void put32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 24)
    at[1] = <uint8_t>(value >> 16)
    at[2] = <uint8_t>(value >> 8)
    at[3] = <uint8_t>value


cdef inline void put64(uint8_t* at, uint64_t value) noexcept nogil:
    put32(at, <uint32_t>(value >> 32))
    put32(at + 4, <uint32_t>value)


cdef int tuple_from(object flow, uint8_t* src, uint8_t* dst, uint16_t* sport, uint16_t* dport,
                    uint8_t* family, uint8_t* proto) except -1:
    """A `Tuple` as plain memory; asserts what the codec asserts."""
    cdef bytes one = flow.src
    cdef bytes two = flow.dst
    family[0] = flow.family
    proto[0] = flow.proto
    cdef Py_ssize_t size = 16 if family[0] == FAMILY_V6 else 4
    assert len(one) == size, flow
    assert len(two) == size, flow
    memcpy(src, <const char*>one, size)
    memcpy(dst, <const char*>two, size)
    sport[0] = flow.sport
    dport[0] = flow.dport
    return 0


cdef int key_from(object key, Flow* flow) except -1:
    """Zone and original tuple of a `FlowKey`."""
    flow.zone = key.zone
    return tuple_from(key.orig, flow.osrc, flow.odst, &flow.osport, &flow.odport,
                      &flow.family, &flow.proto)


cdef int flow_from(object entry, Flow* flow) except -1:
    """A `FlowEntry` as plain memory; `rich` says what did not fit."""
    cdef uint8_t family = 0
    cdef uint8_t proto = 0
    memset(flow, 0, sizeof(Flow))
    key_from(entry.key, flow)
    tuple_from(entry.reply, flow.rsrc, flow.rdst, &flow.rsport, &flow.rdport, &family, &proto)
    if family != flow.family or proto != flow.proto:
        flow.rich |= RICH_ODD
    flow.status = entry.status
    flow.mark = entry.mark
    if entry.timeout_s is not None:
        flow.has_timeout = 1
        flow.timeout = entry.timeout_s
    if entry.kernel_id is not None:
        flow.has_kernel_id = 1
        flow.kernel_id = entry.kernel_id
    tcp = entry.tcp
    if tcp is not None:
        flow.has_tcp = 1
        flow.tcp_state = tcp.state
        flow.flags_orig, flow.flags_reply = tcp.flags_orig, tcp.flags_reply
        flow.wscale_orig, flow.wscale_reply = tcp.wscale_orig, tcp.wscale_reply
    if entry.helper is not None:
        flow.rich |= RICH_HELPER
        flow.helper_len = text_from(entry.helper.encode("ascii", "replace"), flow.helper, flow)
    if entry.labels is not None:
        flow.labels_len = text_from(entry.labels, flow.labels, flow)
    if entry.seqadj is not None:
        flow.rich |= RICH_SEQADJ
    if entry.master is not None:
        flow.rich |= RICH_MASTER
    if entry.synproxy is not None:
        flow.rich |= RICH_SYNPROXY
    if entry.sctp is not None:
        flow.rich |= RICH_SCTP
    if flow.status & STATUS_EXPECTED:
        flow.rich |= RICH_EXPECTED
    return 0


cdef uint8_t text_from(bytes text, uint8_t* room, Flow* flow) except? 0:
    """1 to 16 bytes into `room`; any other length is odd."""
    cdef Py_ssize_t size = len(text)
    if not 1 <= size <= 16:
        flow.rich |= RICH_ODD
        return 0
    memcpy(room, <const char*>text, size)
    return <uint8_t>size


cdef object tuple_of(const Flow* flow, bint reply):
    cdef size_t size = address_bytes(flow)
    if reply:
        return Tuple(flow.family, flow.proto, flow.rsrc[:size], flow.rdst[:size],
                     flow.rsport, flow.rdport)
    return Tuple(flow.family, flow.proto, flow.osrc[:size], flow.odst[:size],
                 flow.osport, flow.odport)


cdef object key_of(const Flow* flow):
    return FlowKey(flow.zone, tuple_of(flow, False))


cdef object entry_of(const Flow* flow):
    """A `FlowEntry`, without what is not here: master, sequence adjustment, SYNPROXY, SCTP."""
    tcp = None
    if flow.has_tcp:
        tcp = TcpState(flow.tcp_state, flow.flags_orig, flow.flags_reply,
                       flow.wscale_orig, flow.wscale_reply)
    return FlowEntry(
        key_of(flow),
        tuple_of(flow, True),
        flow.status,
        flow.timeout if flow.has_timeout else None,
        flow.mark,
        tcp,
        flow.helper[:flow.helper_len].decode("ascii", "replace") if flow.helper_len else None,
        flow.labels[:flow.labels_len] if flow.labels_len else None,
        flow.kernel_id if flow.has_kernel_id else None,
    )
