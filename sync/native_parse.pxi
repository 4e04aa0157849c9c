# ctnetlink messages -> Flow: sync.ctnetlink_parse on plain memory, with its refusals.

cdef enum:
    NLMSG_BYTES = 16
    HEADER_BYTES = 20
    NLMSG_ERROR = 2
    NLMSG_DONE = 3
    NLM_F_CREATE = 0x400
    NLA_NESTED = 0x8000
    NLA_TYPE_MASK = 0x3FFF
    MSG_CT_NEW = 0x0100
    MSG_CT_DELETE = 0x0102
    EVENT_NEW = 1
    EVENT_UPDATE = 2
    EVENT_DESTROY = 3
    MALFORMED = -1

cdef enum:
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

cdef struct Message:
    # One netlink message within a buffer; `at` is where its attributes begin.
    const uint8_t* at
    const uint8_t* end
    uint32_t sequence
    uint32_t pid
    uint16_t kind
    uint16_t flags

cdef struct Attribute:
    const uint8_t* at
    size_t size
    uint16_t kind

cdef struct OneTuple:
    uint8_t src[16]
    uint8_t dst[16]
    uint16_t sport
    uint16_t dport
    uint16_t zone
    uint8_t family
    uint8_t proto

cdef struct Extras:
    # What an event has beside its flow.
    uint64_t time_ns
    uint32_t pid
    uint8_t kind
    uint8_t has_time


cdef inline uint16_t host16(const uint8_t* at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, 2)
    return value


cdef inline uint32_t host32(const uint8_t* at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return value


cdef int next_message(const uint8_t** at, const uint8_t* end, Message* message) noexcept nogil:
    """1 and the next message, 0 at the end of the buffer, MALFORMED."""
    cdef size_t left = <size_t>(end - at[0])
    cdef size_t length
    if left == 0:
        return 0
    if left < NLMSG_BYTES:
        return MALFORMED
    length = host32(at[0])
    if length < NLMSG_BYTES or length > left:
        return MALFORMED
    message.kind = host16(at[0] + 4)
    message.flags = host16(at[0] + 6)
    message.sequence = host32(at[0] + 8)
    message.pid = host32(at[0] + 12)
    message.end = at[0] + length
    # Shorter than nfgenmsg: no attributes.
    message.at = at[0] + HEADER_BYTES if length >= HEADER_BYTES else message.end
    length = (length + 3) & ~<size_t>3
    at[0] += length if length < left else left
    return 1


cdef inline int next_attribute(const uint8_t** at, const uint8_t* end,
                               Attribute* attribute) noexcept nogil:
    """1 and the next attribute, 0 at the end, MALFORMED."""
    cdef size_t left = <size_t>(end - at[0])
    cdef size_t length
    if left < 4:
        return 0
    length = host16(at[0])
    if length < 4 or length > left:
        return MALFORMED
    attribute.kind = host16(at[0] + 2) & NLA_TYPE_MASK
    attribute.at = at[0] + 4
    attribute.size = length - 4
    length = (length + 3) & ~<size_t>3
    at[0] += length if length < left else left
    return 1


cdef inline bint headed(const uint8_t* at, uint16_t length, uint16_t kind) noexcept nogil:
    """Does this attribute header stand here?"""
    return host16(at) == length and host16(at + 2) == kind


cdef inline bint tuple_headed(const uint8_t* at, size_t address, uint16_t first_ip,
                              uint16_t proto_nest) noexcept nogil:
    """The headers before a tuple's keys, as the kernel writes them."""
    return (
        headed(at, <uint16_t>(12 + 2 * address), 1 | NLA_NESTED)
        and headed(at + 4, <uint16_t>(4 + address), first_ip)
        and headed(at + 8 + address, <uint16_t>(4 + address), first_ip + 1)
        and headed(at + 12 + 2 * address, proto_nest, 2 | NLA_NESTED)
        and headed(at + 16 + 2 * address, 5, 1)
    )


cdef int parse_tuple(const Attribute* nest, OneTuple* one) noexcept nogil:
    """0 or MALFORMED. The four shapes that the kernel writes, else the general walk."""
    cdef const uint8_t* at = nest.at
    cdef size_t size = nest.size
    cdef size_t address = 4 if size == 48 or size == 56 else 16
    cdef bint icmp = size == 56 or size == 80
    cdef uint16_t key
    if not (size == 48 or size == 72 or icmp):
        return parse_tuple_general(nest, one)
    if not tuple_headed(at, address, 1 if address == 4 else 3, 36 if icmp else 28):
        return parse_tuple_general(nest, one)
    at += 20 + 2 * address
    if icmp:
        key = 4 if address == 4 else 7
        if not (headed(at + 4, 6, key) and headed(at + 12, 5, key + 1)
                and headed(at + 20, 5, key + 2)):
            return parse_tuple_general(nest, one)
        one.dport = <uint16_t>(at[16] << 8 | at[24])
    else:
        if not (headed(at + 4, 6, 2) and headed(at + 12, 6, 3)):
            return parse_tuple_general(nest, one)
        one.dport = get16(at + 16)
    one.proto = at[0]
    one.sport = get16(at + 8)
    one.zone = 0
    one.family = FAMILY_V4 if address == 4 else FAMILY_V6
    memcpy(one.src, nest.at + 8, address)
    memcpy(one.dst, nest.at + 12 + address, address)
    return 0


cdef inline uint64_t big_number(const Attribute* attribute) noexcept nogil:
    """The bytes as one number; 2^32 for any that has more than 32 bits."""
    cdef uint64_t value = 0
    cdef size_t i
    for i in range(attribute.size):
        value = value << 8 | attribute.at[i]
        if value >> 32:
            return <uint64_t>1 << 32
    return value


cdef int parse_tuple_general(const Attribute* nest, OneTuple* one) noexcept nogil:
    cdef const uint8_t* at = nest.at
    cdef const uint8_t* end = nest.at + nest.size
    cdef const uint8_t* inner
    cdef const uint8_t* src = NULL
    cdef const uint8_t* dst = NULL
    cdef size_t src_bytes = 0
    cdef size_t dst_bytes = 0
    cdef Attribute outer
    cdef Attribute leaf
    cdef uint64_t keys[10]
    cdef uint8_t there[10]
    cdef uint64_t sport = 0
    cdef uint64_t dport = 0
    cdef int more
    cdef int first
    memset(there, 0, sizeof(there))
    memset(keys, 0, sizeof(keys))
    one.zone = 0
    while True:
        more = next_attribute(&at, end, &outer)
        if more <= 0:
            break
        if outer.kind == 3:  # CTA_TUPLE_ZONE
            if outer.size < 2:
                return MALFORMED
            one.zone = get16(outer.at)
            continue
        if outer.kind != 1 and outer.kind != 2:
            continue
        inner = outer.at
        while True:
            more = next_attribute(&inner, outer.at + outer.size, &leaf)
            if more <= 0:
                break
            if outer.kind == 2:  # CTA_TUPLE_PROTO
                if leaf.kind < 10:
                    keys[leaf.kind] = big_number(&leaf)
                    there[leaf.kind] = 1
            elif leaf.kind == 1 or leaf.kind == 3:
                src = leaf.at
                src_bytes = leaf.size
            elif leaf.kind == 2 or leaf.kind == 4:
                dst = leaf.at
                dst_bytes = leaf.size
        if more < 0:
            return MALFORMED
    if more < 0 or (src_bytes != 4 and src_bytes != 16) or dst_bytes != src_bytes or not there[1]:
        return MALFORMED
    sport = keys[2]
    dport = keys[3]
    for first in range(4, 8, 3):  # ICMP, then ICMPv6: id, type, code.
        if there[first + 1]:
            sport = keys[first]
            dport = keys[first + 1] << 8 | keys[first + 2]
    if keys[1] > 0xFF or sport > 0xFFFF or dport > 0xFFFF:
        return MALFORMED
    one.family = FAMILY_V4 if src_bytes == 4 else FAMILY_V6
    memcpy(one.src, src, src_bytes)
    memcpy(one.dst, dst, dst_bytes)
    one.proto = <uint8_t>keys[1]
    one.sport = <uint16_t>sport
    one.dport = <uint16_t>dport
    return 0


cdef int parse_protoinfo(const Attribute* nest, Flow* flow) noexcept nogil:
    cdef const uint8_t* at = nest.at
    cdef const uint8_t* inner
    cdef Attribute outer
    cdef Attribute leaf
    cdef uint8_t values[6]
    cdef uint8_t there[6]
    cdef int more
    flow.has_tcp = 0
    if nest.size == 44 and (
        headed(at, 44, 1 | NLA_NESTED) and headed(at + 4, 5, 1) and headed(at + 12, 5, 2)
        and headed(at + 20, 5, 3) and headed(at + 28, 6, 4) and headed(at + 36, 6, 5)
    ):
        flow.has_tcp = 1
        flow.tcp_state = at[8]
        flow.wscale_orig = at[16]
        flow.wscale_reply = at[24]
        flow.flags_orig = at[32]
        flow.flags_reply = at[40]
        return 0
    memset(values, 0, sizeof(values))
    memset(there, 0, sizeof(there))
    while True:
        more = next_attribute(&at, nest.at + nest.size, &outer)
        if more <= 0:
            break
        if outer.kind != 1:  # CTA_PROTOINFO_TCP
            flow.rich |= RICH_SCTP
            return 0
        inner = outer.at
        while True:
            more = next_attribute(&inner, outer.at + outer.size, &leaf)
            if more <= 0:
                break
            if leaf.size and leaf.kind < 6:
                values[leaf.kind] = leaf.at[0]
                there[leaf.kind] = 1
        if more < 0:
            return MALFORMED
    if more < 0:
        return MALFORMED
    if not there[1]:
        flow.rich |= RICH_SCTP
    else:
        flow.has_tcp = 1
        flow.tcp_state = values[1]
        flow.wscale_orig = values[2]
        flow.wscale_reply = values[3]
        flow.flags_orig = values[4]
        flow.flags_reply = values[5]
    return 0
