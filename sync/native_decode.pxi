# Delta bytes -> Flow, with the values and the refusals of sync.delta_codec.decode_deltas.
#
# What this reader does not know (expectations, a flag bit of a later release) it leaves to the
# reference, which alone decides: DELTA_REFERENCE. Sequence adjustment and master are stepped over;
# the flow says in `rich` that they were there, and whoever needs them decodes it once more.
#
# Fixed fields are bounded by the payload and not by the delta's end, as struct.unpack_from is in
# the reference; a delta that ran past its own end is refused by its length afterwards. Numbers of
# varying length and counted bytes are bounded by the delta.

cdef enum:
    DELTA_DESTROY = 1 << 0
    DELTA_REFRESH = 1 << 1
    DELTA_V6 = 1 << 2
    DELTA_SNAT = 1 << 3
    DELTA_DNAT = 1 << 4
    DELTA_TCP = 1 << 5
    DELTA_TIMEOUT = 1 << 6
    DELTA_ZONE = 1 << 7
    DELTA_HELPER = 1 << 8
    DELTA_LABELS = 1 << 9
    DELTA_SEQADJ = 1 << 10
    DELTA_MASTER = 1 << 11
    DELTA_EPOCH = 1 << 12
    DELTA_KNOWN = (1 << 13) - 1
    DELTA_KNOWN_DESTROY = DELTA_DESTROY | DELTA_V6 | DELTA_ZONE | DELTA_EPOCH

cdef enum:
    DELTA_OK = 0
    DELTA_TRUNCATED = 1
    DELTA_BAD_LENGTH = 2
    DELTA_BAD_VALUE = 3
    DELTA_NO_EPOCH = 4
    DELTA_REFERENCE = 5

cdef enum:
    DELTA_STATUS_MASK = 0x7F
    DELTA_TIMEOUT_MAX = 0x7FFFFFFF
    DELTA_COUNTED_HELPER_MAX = 15
    DELTA_COUNTED_LABELS_MAX = 16

_DELTA_REASONS = (None, "truncated", "bad_length", "bad_value", "no_epoch", "reference")


cdef struct NativeDelta:
    Flow flow
    uint64_t epoch
    uint64_t contribution  # of a DESTROY
    uint32_t incarnation
    uint32_t count
    uint8_t destroy
    uint8_t refresh
    uint32_t start  # of its length, in the payload
    uint32_t end


cdef struct Reader:
    const uint8_t* base
    uint32_t at
    uint32_t end  # of the delta
    uint32_t total  # of the payload


cdef inline const uint8_t* fixed(Reader* r, uint32_t count) noexcept nogil:
    """The next `count` bytes, or NULL past the end of the payload."""
    cdef const uint8_t* p
    if r.at > r.total or r.total - r.at < count:
        return NULL
    p = r.base + r.at
    r.at += count
    return p


cdef int read_leb(Reader* r, uint32_t end, uint32_t* out) noexcept nogil:
    """A varint in its shortest form, of at most 32 bits, that ends before `end`."""
    cdef uint64_t value = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    while True:
        if r.at >= end:
            return DELTA_TRUNCATED
        byte = r.base[r.at]
        r.at += 1
        value |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 28:
            return DELTA_BAD_VALUE
    if value > <uint64_t>0xFFFFFFFF or (byte == 0 and shift):
        return DELTA_BAD_VALUE
    out[0] = <uint32_t>value
    return DELTA_OK


cdef int read_counted_bytes(Reader* r, uint8_t limit, uint8_t* out, uint8_t* length) noexcept nogil:
    cdef uint8_t count
    if r.at >= r.end:
        return DELTA_TRUNCATED
    count = r.base[r.at]
    if count < 1 or count > limit:
        return DELTA_BAD_VALUE
    if r.end - r.at < <uint32_t>1 + count:
        return DELTA_TRUNCATED
    memcpy(out, r.base + r.at + 1, count)
    length[0] = count
    r.at += <uint32_t>1 + count
    return DELTA_OK


cdef inline bint is_icmp(uint8_t proto) noexcept nogil:
    return proto == PROTO_ICMP or proto == PROTO_ICMPV6


cdef uint8_t icmp_answer(uint8_t proto, uint8_t kind) noexcept nogil:
    """hafw.flow.inverse: the type of the answer; a type without one is kept."""
    if proto == PROTO_ICMP:
        if kind == 8:
            return 0
        if kind == 0:
            return 8
        if kind == 13 or kind == 15 or kind == 17:
            return kind + 1
        if kind == 14 or kind == 16 or kind == 18:
            return kind - 1
        return kind
    if kind == 128 or kind == 139:
        return kind + 1
    if kind == 129 or kind == 140:
        return kind - 1
    return kind


cdef void inverse_ports(const Flow* f, uint16_t* sport, uint16_t* dport) noexcept nogil:
    """The keys of the reply of a flow without NAT."""
    if is_icmp(f.proto):
        sport[0] = f.osport
        dport[0] = <uint16_t>(
            icmp_answer(f.proto, <uint8_t>(f.odport >> 8)) << 8 | (f.odport & 0xFF)
        )
    else:
        sport[0] = f.odport
        dport[0] = f.osport


cdef int read_head(Reader* r, uint16_t flags, const uint64_t* header_epoch, NativeDelta* d) noexcept nogil:
    """From the protocol to the epoch: what every delta has."""
    cdef uint32_t size = 16 if flags & DELTA_V6 else 4
    cdef Flow* f = &d.flow
    cdef int code
    cdef const uint8_t* p = fixed(r, 1 + 2 * size + 4)
    if p == NULL:
        return DELTA_TRUNCATED
    f.family = FAMILY_V6 if flags & DELTA_V6 else FAMILY_V4
    f.proto = p[0]
    memcpy(f.osrc, p + 1, size)
    memcpy(f.odst, p + 1 + size, size)
    f.osport = get16(p + 1 + 2 * size)
    f.odport = get16(p + 3 + 2 * size)
    if flags & DELTA_ZONE:
        p = fixed(r, 2)
        if p == NULL:
            return DELTA_TRUNCATED
        f.zone = get16(p)
        if f.zone == 0:
            return DELTA_BAD_VALUE
    p = fixed(r, 4)
    if p == NULL:
        return DELTA_TRUNCATED
    d.incarnation = get32(p)
    code = read_leb(r, r.end, &d.count)
    if code:
        return code
    if flags & DELTA_EPOCH:
        p = fixed(r, 8)
        if p == NULL:
            return DELTA_TRUNCATED
        d.epoch = get64(p)
    elif header_epoch == NULL:
        return DELTA_NO_EPOCH
    else:
        d.epoch = header_epoch[0]
    return DELTA_OK


cdef int read_nat(Reader* r, uint16_t flags, Flow* f) noexcept nogil:
    """The reply tuple: the inverse of the original, and where it differs from that."""
    cdef uint32_t size = 16 if flags & DELTA_V6 else 4
    cdef uint16_t plain
    cdef const uint8_t* p
    memcpy(f.rsrc, f.odst, 16)
    memcpy(f.rdst, f.osrc, 16)
    inverse_ports(f, &f.rsport, &f.rdport)
    if not flags & (DELTA_SNAT | DELTA_DNAT):
        return DELTA_OK
    plain = f.rdport
    if flags & DELTA_SNAT:
        p = fixed(r, size + 2)
        if p == NULL:
            return DELTA_TRUNCATED
        memcpy(f.rdst, p, size)
        f.rdport = get16(p + size)
    if flags & DELTA_DNAT:
        p = fixed(r, size + 2)
        if p == NULL:
            return DELTA_TRUNCATED
        memcpy(f.rsrc, p, size)
        f.rsport = get16(p + size)
    if is_icmp(f.proto) and f.rdport != plain:
        return DELTA_BAD_VALUE  # Translation changes an ICMP type.
    return DELTA_OK


cdef int read_rare(Reader* r, uint16_t flags, Flow* f) noexcept nogil:
    """Helper, labels, sequence adjustment, master."""
    cdef int code
    cdef uint8_t i
    if flags & DELTA_HELPER:
        code = read_counted_bytes(r, DELTA_COUNTED_HELPER_MAX, f.helper, &f.helper_len)
        if code:
            return code
        for i in range(f.helper_len):
            if f.helper[i] < 0x21 or f.helper[i] > 0x7E:
                return DELTA_BAD_VALUE
        f.rich |= RICH_HELPER
    if flags & DELTA_LABELS:
        code = read_counted_bytes(r, DELTA_COUNTED_LABELS_MAX, f.labels, &f.labels_len)
        if code:
            return code
    if flags & DELTA_SEQADJ:
        if fixed(r, 24) == NULL:
            return DELTA_TRUNCATED
        f.rich |= RICH_SEQADJ
    if flags & DELTA_MASTER:
        if fixed(r, 37 if flags & DELTA_V6 else 13) == NULL:
            return DELTA_TRUNCATED
        f.rich |= RICH_MASTER
    return DELTA_OK


cdef int read_upsert(Reader* r, uint16_t flags, Flow* f) noexcept nogil:
    cdef int code
    cdef const uint8_t* p = fixed(r, 5)
    if p == NULL:
        return DELTA_TRUNCATED
    f.status = p[0]
    f.mark = get32(p + 1)
    if f.status & ~<uint32_t>DELTA_STATUS_MASK:
        return DELTA_BAD_VALUE
    if flags & DELTA_TIMEOUT:
        code = read_leb(r, r.end, &f.timeout)
        if code:
            return code
        if f.timeout > DELTA_TIMEOUT_MAX:
            return DELTA_BAD_VALUE
        f.has_timeout = 1
    code = read_nat(r, flags, f)
    if code:
        return code
    if flags & DELTA_TCP:
        p = fixed(r, 4)
        if p == NULL:
            return DELTA_TRUNCATED
        f.has_tcp = 1
        f.tcp_state = p[0]
        f.wscale_orig = p[1] >> 4
        f.wscale_reply = p[1] & 0xF
        f.flags_orig = p[2]
        f.flags_reply = p[3]
        if f.tcp_state > 9 or f.proto != PROTO_TCP:
            return DELTA_BAD_VALUE
    if flags & (DELTA_HELPER | DELTA_LABELS | DELTA_SEQADJ | DELTA_MASTER):
        return read_rare(r, flags, f)
    return DELTA_OK


cdef int read_delta(
    const uint8_t* payload, uint32_t total, uint32_t start, const uint64_t* header_epoch, NativeDelta* d
) noexcept nogil:
    """The delta whose length stands at `start`; `d.end` is where the next begins."""
    cdef Reader r
    cdef uint32_t length
    cdef uint16_t flags
    cdef int code
    cdef const uint8_t* p
    memset(d, 0, sizeof(NativeDelta))
    r.base = payload
    r.at = start
    r.total = total
    d.start = start
    code = read_leb(&r, total, &length)
    if code:
        return code
    if length > total - r.at:
        return DELTA_TRUNCATED
    r.end = r.at + length
    d.end = r.end
    p = fixed(&r, 2)
    if p == NULL:
        return DELTA_TRUNCATED
    flags = get16(p)
    if flags & ~<uint16_t>(DELTA_KNOWN_DESTROY if flags & DELTA_DESTROY else DELTA_KNOWN):
        return DELTA_REFERENCE
    code = read_head(&r, flags, header_epoch, d)
    if code:
        return code
    if flags & DELTA_DESTROY:
        d.destroy = 1
        p = fixed(&r, 8)
        if p == NULL:
            return DELTA_TRUNCATED
        d.contribution = get64(p)
    else:
        d.refresh = 1 if flags & DELTA_REFRESH else 0
        code = read_upsert(&r, flags, &d.flow)
        if code:
            return code
    return DELTA_OK if r.at == r.end else DELTA_BAD_LENGTH


cdef int check_payload(const uint8_t* payload, uint32_t total, const uint64_t* header_epoch) noexcept nogil:
    """DELTA_OK if every delta is right, else the first reason why not."""
    cdef NativeDelta d
    cdef uint32_t at = 0
    cdef int code
    while at < total:
        code = read_delta(payload, total, at, header_epoch, &d)
        if code:
            return code
        at = d.end
    return DELTA_OK


def check_deltas(bytes payload not None, header_epoch):
    """None if `decode_deltas` would take all of `payload`; the reason of its refusal; or
    "reference" where only it can tell."""
    cdef uint64_t epoch = 0
    cdef const uint64_t* stated = NULL
    if header_epoch is not None:
        epoch = header_epoch
        stated = &epoch
    assert len(payload) <= 0x7FFFFFFF
    return _DELTA_REASONS[check_payload(payload, <uint32_t>len(payload), stated)]
