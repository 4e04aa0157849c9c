# A dump of the kernel joined with the registry -> the deltas of a snapshot: what
# sync.snapshot.SnapshotServer does for plain flows, one received buffer a call.


def serve_dump(FlowTable table not None, bytes dump not None, uint64_t header_epoch,
               buckets):
    """(deltas, how many, the messages that the reference must read). Of the flows in `dump` those
    that the registry knows as this life, and if `buckets` is not empty only those in them.
    Raises MalformedMessageError."""
    cdef const uint8_t* at = <const uint8_t*><const char*>dump
    cdef const uint8_t* end = at + len(dump)
    cdef const uint8_t* begin
    cdef uint8_t wanted[256]
    cdef Message message
    cdef list rest = []
    cdef int bucket
    cdef int more
    cdef uint32_t flows = 0
    cdef size_t used = 0
    # No delta is longer than the message of its flow: a tuple alone has 52 bytes there.
    cdef size_t room = len(dump) + DELTA_BYTES_MAX
    cdef uint8_t* out = <uint8_t*>malloc(room)
    if out == NULL:
        raise MemoryError
    memset(wanted, not buckets, sizeof(wanted))
    for bucket in buckets:
        wanted[bucket & 0xFF] = 1
    try:
        while True:
            begin = at
            more = next_message(&at, end, &message)
            if more <= 0:
                break
            if message.kind != MSG_CT_NEW:
                continue
            if used + DELTA_BYTES_MAX > room:
                rest.append(PyBytes_FromStringAndSize(<char*>begin, at - begin))
                continue
            more = serve_flow(table, &message, header_epoch, wanted, out + used)
            if more < 0:
                rest.append(PyBytes_FromStringAndSize(<char*>begin, at - begin))
            elif more > 0:
                used += more
                flows += 1
        if more < 0:
            raise MalformedMessageError("a netlink message is cut or lies about its length")
        return PyBytes_FromStringAndSize(<char*>out, used), flows, rest
    finally:
        free(out)


cdef int serve_flow(FlowTable table, const Message* message, uint64_t header_epoch,
                    const uint8_t* wanted, uint8_t* out) noexcept nogil:
    """The bytes of its delta, 0 if it is not to be said, -1 if the reference must look."""
    cdef Flow flow
    cdef Extras extras
    cdef Stamp stamp
    cdef Slot* slot
    cdef uint64_t h
    cdef size_t size
    if parse_entry(message, &flow, &extras) < 0:
        return -1  # The reference refuses it.
    h = flow_hash(&table.secret, &flow)
    if not wanted[h >> 56]:
        return 0
    slot = table.find(h)
    if slot == NULL:
        return 0
    if flow.rich or slot.status & SLOT_RICH:
        return -1
    if flow_contribution(&table.secret, &flow, slot.incarnation, NULL, 0) != slot.contribution:
        return 0
    stamp.epoch = table.epoch_of(slot)
    stamp.incarnation = slot.incarnation
    stamp.count = slot.count
    size = encode_upsert(out, &flow, &stamp, header_epoch, True)
    return <int>size if size else -1
