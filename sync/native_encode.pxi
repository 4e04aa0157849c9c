# Flow -> delta: sync.delta_codec.encode_delta on plain memory.

# The flag bits and the inverse of a tuple are native_decode.pxi's.

cdef enum:
    DELTA_BYTES_MAX = 192

cdef enum:
    RICH_UNSAYABLE = RICH_MASTER | RICH_SEQADJ | RICH_SYNPROXY | RICH_SCTP | RICH_ODD

cdef struct Stamp:
    # Which life of a flow, and under which word.
    uint64_t epoch
    uint32_t incarnation
    uint32_t count


cdef inline size_t put_varint(uint8_t* at, uint32_t value) noexcept nogil:
    cdef size_t size = 0
    while value >= 0x80:
        at[size] = <uint8_t>(value | 0x80)
        value >>= 7
        size += 1
    at[size] = <uint8_t>value
    return size + 1


cdef size_t put_head(uint8_t* at, const Flow* flow, const Stamp* stamp, uint64_t header_epoch,
                     uint16_t* flags) noexcept nogil:
    """From the protocol to the epoch; the flags come first, later."""
    cdef size_t size = address_bytes(flow)
    cdef uint8_t* begin = at
    if flow.family == FAMILY_V6:
        flags[0] |= DELTA_V6
    at[2] = flow.proto
    at += 3
    memcpy(at, flow.osrc, size)
    memcpy(at + size, flow.odst, size)
    at += 2 * size
    put16(at, flow.osport)
    put16(at + 2, flow.odport)
    at += 4
    if flow.zone:
        flags[0] |= DELTA_ZONE
        put16(at, flow.zone)
        at += 2
    put32(at, stamp.incarnation)
    at += 4
    at += put_varint(at, stamp.count)
    if stamp.epoch != header_epoch:
        flags[0] |= DELTA_EPOCH
        put64(at, stamp.epoch)
        at += 8
    return <size_t>(at - begin)


cdef size_t put_counted(uint8_t* at, const uint8_t* text, uint8_t size) noexcept nogil:
    at[0] = size
    memcpy(at + 1, text, size)
    return 1 + <size_t>size


cdef size_t with_length(uint8_t* room, const uint8_t* body, size_t size) noexcept nogil:
    cdef size_t head = put_varint(room, <uint32_t>size)
    memcpy(room + head, body, size)
    return head + size


cdef size_t encode_upsert(uint8_t* room, const Flow* flow, const Stamp* stamp,
                          uint64_t header_epoch, bint refresh) noexcept nogil:
    """The bytes written, at most DELTA_BYTES_MAX; 0 for a flow that the reference must say."""
    cdef uint8_t body[DELTA_BYTES_MAX]
    cdef uint8_t* at
    cdef size_t size = address_bytes(flow)
    cdef uint16_t flags = DELTA_REFRESH if refresh else 0
    cdef uint16_t sport
    cdef uint16_t dport
    if flow.rich & RICH_UNSAYABLE or flow.helper_len > DELTA_COUNTED_HELPER_MAX:
        return 0
    at = body + put_head(body, flow, stamp, header_epoch, &flags)
    at[0] = flow.status & DELTA_STATUS_MASK
    put32(at + 1, flow.mark)
    at += 5
    if flow.has_timeout:
        flags |= DELTA_TIMEOUT
        at += put_varint(at, min(flow.timeout, <uint32_t>DELTA_TIMEOUT_MAX))
    inverse_ports(flow, &sport, &dport)
    if flow.rdport != dport or memcmp(flow.rdst, flow.osrc, size) != 0:
        flags |= DELTA_SNAT
        memcpy(at, flow.rdst, size)
        put16(at + size, flow.rdport)
        at += size + 2
    if flow.rsport != sport or memcmp(flow.rsrc, flow.odst, size) != 0:
        flags |= DELTA_DNAT
        memcpy(at, flow.rsrc, size)
        put16(at + size, flow.rsport)
        at += size + 2
    if flow.has_tcp:
        flags |= DELTA_TCP
        at[0] = flow.tcp_state
        at[1] = <uint8_t>((flow.wscale_orig & 0xF) << 4 | (flow.wscale_reply & 0xF))
        at[2] = flow.flags_orig
        at[3] = flow.flags_reply
        at += 4
    if flow.helper_len:
        flags |= DELTA_HELPER
        at += put_counted(at, flow.helper, flow.helper_len)
    if flow.labels_len:
        flags |= DELTA_LABELS
        at += put_counted(at, flow.labels, flow.labels_len)
    put16(body, flags)
    return with_length(room, body, <size_t>(at - body))


cdef size_t encode_destroy(uint8_t* room, const Flow* flow, const Stamp* stamp,
                           uint64_t header_epoch, uint64_t contribution) noexcept nogil:
    """The bytes written, at most DELTA_BYTES_MAX."""
    cdef uint8_t body[DELTA_BYTES_MAX]
    cdef uint16_t flags = DELTA_DESTROY
    cdef size_t size = put_head(body, flow, stamp, header_epoch, &flags)
    put64(body + size, contribution)
    put16(body, flags)
    return with_length(room, body, size + 8)


def upsert_bytes(entry, uint32_t incarnation, uint64_t epoch, uint32_t count, bint refresh,
                 uint64_t header_epoch):
    """The delta of an entry, or None for one that the reference must say."""
    cdef uint8_t room[DELTA_BYTES_MAX]
    cdef Flow flow
    cdef Stamp stamp = Stamp(epoch, incarnation, count)
    flow_from(entry, &flow)
    cdef size_t size = encode_upsert(room, &flow, &stamp, header_epoch, refresh)
    return room[:size] if size else None


def destroy_bytes(key, uint32_t incarnation, uint64_t epoch, uint32_t count,
                  uint64_t contribution, uint64_t header_epoch):
    """The delta that says that a flow is gone."""
    cdef uint8_t room[DELTA_BYTES_MAX]
    cdef Flow flow
    cdef Stamp stamp = Stamp(epoch, incarnation, count)
    key_from(key, &flow)
    return room[:encode_destroy(room, &flow, &stamp, header_epoch, contribution)]
