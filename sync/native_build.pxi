# Flow -> ctnetlink requests, byte for byte as sync.ctnetlink_build writes them.
#
# Every builder takes room for MESSAGE_ROOM bytes and returns the length, always a multiple of four;
# 0 where the family is none of ours. The tuple is part of each: a DELETE without one (it would
# flush the table) cannot be written, and whoever sends looks again (`is_delete_of_one`).

cdef enum:
    CTB_NEW = 0x0100
    CTB_GET = 0x0101
    CTB_DELETE = 0x0102
    CTB_REQUEST = 0x01
    CTB_CREATE_EXCL = 0x600
    CTB_NESTED = 0x8000

cdef enum:
    MESSAGE_ROOM = 640
    TIMEOUT_WITHOUT_ANY = 60

cdef enum:
    STATUS_CREATED = STATUS_SEEN_REPLY | STATUS_ASSURED
    STATUS_FIXED_TIMEOUT = 1 << 10
    TCPF_LIBERAL = 0x08
    TCPF_MAXACK = 0x20
    TCPF_OF_ONE_NODE = 0x30
    TCPF_UPDATE_MASK = 0xC7


cdef inline uint8_t* put_nla(uint8_t* p, uint16_t length, uint16_t kind) noexcept nogil:
    """The header of an attribute: `length` counts it, and is in host order."""
    memcpy(p, &length, 2)
    memcpy(p + 2, &kind, 2)
    return p + 4


cdef inline uint8_t* put_nest(uint8_t* p, uint16_t length, uint16_t kind) noexcept nogil:
    return put_nla(p, length, kind | CTB_NESTED)


cdef inline uint8_t* attr_8(uint8_t* p, uint16_t kind, uint8_t value) noexcept nogil:
    p = put_nla(p, 5, kind)
    memset(p, 0, 4)
    p[0] = value
    return p + 4


cdef inline uint8_t* attr_16(uint8_t* p, uint16_t kind, uint16_t value) noexcept nogil:
    p = put_nla(p, 6, kind)
    put16(p, value)
    p[2] = 0
    p[3] = 0
    return p + 4


cdef inline uint8_t* attr_32(uint8_t* p, uint16_t kind, uint32_t value) noexcept nogil:
    p = put_nla(p, 8, kind)
    put32(p, value)
    return p + 4


cdef inline uint8_t* put_bytes(uint8_t* p, uint16_t kind, const uint8_t* text, uint16_t length) noexcept nogil:
    """An attribute of any length, padded to four bytes."""
    p = put_nla(p, 4 + length, kind)
    memcpy(p, text, length)
    while length & 3:
        p[length] = 0
        length += 1
    return p + length


cdef inline bint has_ports(uint8_t proto) noexcept nogil:
    # TCP, UDP, DCCP, GRE, SCTP, UDPlite
    return proto == 6 or proto == 17 or proto == 33 or proto == 47 or proto == 132 or proto == 136


cdef uint8_t* put_tuple(
    uint8_t* p, uint16_t kind, uint8_t family, uint8_t proto,
    const uint8_t* src, const uint8_t* dst, uint16_t sport, uint16_t dport,
) noexcept nogil:
    cdef uint16_t size = 4 if family == FAMILY_V4 else 16
    cdef uint16_t first = 1 if family == FAMILY_V4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    cdef uint16_t keys = 28 if has_ports(proto) else 36 if is_icmp(proto) else 12
    cdef uint16_t key = 4 if proto == PROTO_ICMP else 7  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID
    p = put_nest(p, 4 + 4 + 2 * (4 + size) + keys, kind)
    p = put_nest(p, 4 + 2 * (4 + size), 1)
    p = put_bytes(p, first, src, size)
    p = put_bytes(p, first + 1, dst, size)
    p = put_nest(p, keys, 2)
    p = attr_8(p, 1, proto)
    if keys == 28:
        p = attr_16(p, 2, sport)
        p = attr_16(p, 3, dport)
    elif keys == 36:
        p = attr_16(p, key, sport)
        p = attr_8(p, key + 1, <uint8_t>(dport >> 8))
        p = attr_8(p, key + 2, <uint8_t>dport)
    return p


cdef inline uint8_t* put_orig(uint8_t* p, const Flow* f) noexcept nogil:
    return put_tuple(p, 1, f.family, f.proto, f.osrc, f.odst, f.osport, f.odport)


cdef inline uint8_t* put_address(uint8_t* p, const Flow* f) noexcept nogil:
    """What names the flow: tuple and zone."""
    p = put_orig(p, f)
    if f.zone:
        p = attr_16(p, 18, f.zone)
    return p


cdef uint8_t* put_nat(uint8_t* p, uint16_t kind, const Flow* f, const uint8_t* address, uint16_t key) noexcept nogil:
    """One translation to exactly `address` and, where the protocol has one, `key`."""
    cdef uint16_t size = 4 if f.family == FAMILY_V4 else 16
    cdef uint16_t low = 1 if f.family == FAMILY_V4 else 4  # CTA_NAT_V4_MINIP, CTA_NAT_V6_MINIP
    cdef bint keyed = has_ports(f.proto) or is_icmp(f.proto)
    p = put_nest(p, 4 + 2 * (4 + size) + (20 if keyed else 0), kind)
    p = put_bytes(p, low, address, size)
    p = put_bytes(p, low + 1, address, size)
    if keyed:
        p = put_nest(p, 20, 3)
        p = attr_16(p, 1, key)
        p = attr_16(p, 2, key)
    return p


cdef uint8_t* put_tcp(uint8_t* p, const Flow* f, uint8_t flags_orig, uint8_t flags_reply, uint8_t mask) noexcept nogil:
    cdef uint8_t pair[2]
    p = put_nest(p, 48, 4)
    p = put_nest(p, 44, 1)
    p = attr_8(p, 1, f.tcp_state)
    p = attr_8(p, 2, f.wscale_orig)
    p = attr_8(p, 3, f.wscale_reply)
    pair[0] = flags_orig
    pair[1] = mask
    p = put_bytes(p, 4, pair, 2)
    pair[0] = flags_reply
    return put_bytes(p, 5, pair, 2)


cdef inline bint is_family(uint8_t family) noexcept nogil:
    return family == FAMILY_V4 or family == FAMILY_V6


cdef inline uint32_t put_header(
    uint8_t* message, const uint8_t* end, uint16_t kind, uint16_t flags, uint8_t family
) noexcept nogil:
    """nlmsghdr and nfgenmsg, once the length is known; sequence and port id stay 0."""
    cdef uint32_t length = <uint32_t>(end - message)
    memset(message, 0, 20)
    memcpy(message, &length, 4)
    memcpy(message + 4, &kind, 2)
    memcpy(message + 6, &flags, 2)
    message[16] = family
    return length


cdef uint32_t write_create(uint8_t* out, const Flow* f, uint32_t hold_s, bint pristine) noexcept nogil:
    """Creation in the only form in which the kernel translates: see sync.ctnetlink_build. Without
    sequence adjustment and master: flows that have them go through the reference."""
    cdef uint8_t* p = out + 20
    cdef uint16_t sport, dport
    cdef uint32_t timeout = f.timeout if f.has_timeout else 0
    cdef uint8_t liberal = TCPF_LIBERAL if pristine else 0
    cdef uint8_t keep = (0xFF & ~TCPF_OF_ONE_NODE) if pristine else 0xFF
    if not is_family(f.family):
        return 0
    if hold_s > timeout:
        timeout = hold_s
    p = put_orig(p, f)
    inverse_ports(f, &sport, &dport)
    p = put_tuple(p, 2, f.family, f.proto, f.odst, f.osrc, sport, dport)
    # The kernel translates an ICMP id once, with the source; the destination keeps it.
    p = put_nat(p, 6, f, f.rdst, f.rsport if is_icmp(f.proto) else f.rdport)
    p = put_nat(p, 13, f, f.rsrc, f.osport if is_icmp(f.proto) else f.rsport)
    p = attr_32(p, 7, timeout if timeout else TIMEOUT_WITHOUT_ANY)
    p = attr_32(p, 3, (f.status & STATUS_CREATED) | STATUS_CONFIRMED
                | (STATUS_FIXED_TIMEOUT if f.proto == PROTO_GRE else 0))
    if f.zone:
        p = attr_16(p, 18, f.zone)
    if f.mark:
        p = attr_32(p, 8, f.mark)
    if f.has_tcp and f.proto == PROTO_TCP:
        p = put_tcp(
            p, f, (f.flags_orig | liberal) & keep, (f.flags_reply | liberal) & keep, 0xFF
        )
    if f.helper_len:
        p = put_helper(p, f)
    if f.labels_len:
        p = put_bytes(p, 22, f.labels, f.labels_len)
    return put_header(out, p, CTB_NEW, CTB_REQUEST | CTB_CREATE_EXCL, f.family)


cdef uint8_t* put_helper(uint8_t* p, const Flow* f) noexcept nogil:
    cdef uint8_t name[17]
    cdef uint16_t length = f.helper_len if f.helper_len <= 16 else 16
    memcpy(name, f.helper, length)
    name[length] = 0
    length += 1
    p = put_nest(p, 4 + 4 + ((length + 3) & ~<uint16_t>3), 5)
    return put_bytes(p, 1, name, length)


cdef uint32_t write_update(uint8_t* out, const Flow* f, uint32_t hold_s, bint with_tcp) noexcept nogil:
    """What an Update asks for: status, timeout (the greater of the flow's and `hold_s`), the whole
    mark, and the TCP state unless it must not go back."""
    cdef uint8_t* p = out + 20
    cdef uint32_t timeout = f.timeout if f.has_timeout else 0
    cdef uint32_t status = (f.status & (STATUS_CREATED | STATUS_EXPECTED)) | STATUS_CONFIRMED
    if not is_family(f.family):
        return 0
    p = put_address(p, f)
    p = attr_32(p, 3, status)
    p = attr_32(p, 7, timeout if timeout > hold_s else hold_s)
    p = attr_32(p, 8, f.mark)
    p = attr_32(p, 21, 0xFFFFFFFF)
    if with_tcp and f.has_tcp:
        p = put_tcp(p, f, f.flags_orig, f.flags_reply, TCPF_UPDATE_MASK)
    return put_header(out, p, CTB_NEW, CTB_REQUEST, f.family)


cdef uint32_t write_adopt(
    uint8_t* out, const Flow* f, bint has_timeout, uint32_t timeout_s, bint has_mark, uint32_t mark
) noexcept nogil:
    """Adopt: our sixteen bits of the mark, and a timeout if there is one. SetTimeout: no mark."""
    cdef uint8_t* p = out + 20
    if not is_family(f.family):
        return 0
    p = put_address(p, f)
    if has_timeout:
        p = attr_32(p, 7, timeout_s)
    if has_mark:
        p = attr_32(p, 8, mark & <uint32_t>0xFFFF0000)
        p = attr_32(p, 21, <uint32_t>0xFFFF0000)
    return put_header(out, p, CTB_NEW, CTB_REQUEST, f.family)


cdef uint32_t write_strict(uint8_t* out, const Flow* f) noexcept nogil:
    """clear_liberal: the flow's windows are learnt; its state is not touched."""
    cdef uint8_t* p = out + 20
    cdef uint8_t off[2]
    if not is_family(f.family):
        return 0
    off[0] = 0
    off[1] = TCPF_LIBERAL
    p = put_address(p, f)
    p = put_nest(p, 24, 4)
    p = put_nest(p, 20, 1)
    p = put_bytes(p, 4, off, 2)
    p = put_bytes(p, 5, off, 2)
    return put_header(out, p, CTB_NEW, CTB_REQUEST, f.family)


cdef uint32_t write_delete(uint8_t* out, const Flow* f) noexcept nogil:
    """Deletes exactly this flow. There is no way through here without the tuple."""
    cdef uint32_t length
    if not is_family(f.family):
        return 0
    length = put_header(out, put_address(out + 20, f), CTB_DELETE, CTB_REQUEST, f.family)
    return length if is_one_delete(out, length) else 0


cdef bint is_one_delete(const uint8_t* message, uint32_t length) noexcept nogil:
    """A DELETE whose first attribute is an original tuple of full size (is_delete_of_one)."""
    cdef uint16_t kind, first, size
    if length < 24:
        return False
    memcpy(&kind, message + 4, 2)
    memcpy(&size, message + 20, 2)
    memcpy(&first, message + 22, 2)
    return kind == CTB_DELETE and first == (1 | CTB_NESTED) and 36 <= size <= length - 20
