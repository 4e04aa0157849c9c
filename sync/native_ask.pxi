# The builders and the delta reader for Python: the slow path, and the tests that hold them equal.

def decode_deltas(bytes payload not None, header_epoch):
    """The deltas of `payload` as tuples (destroy, entry or key, incarnation, epoch, count,
    contribution, refresh, rich), or the reason of the refusal as `check_deltas` gives it. Of rich
    flows the entry has neither master nor sequence adjustment."""
    cdef NativeDelta d
    cdef uint64_t epoch = 0
    cdef const uint64_t* stated = NULL
    cdef const uint8_t* base = <const uint8_t*><const char*>payload
    cdef uint32_t total = <uint32_t>len(payload)
    cdef uint32_t at = 0
    cdef int code
    if header_epoch is not None:
        epoch = header_epoch
        stated = &epoch
    found = []
    while at < total:
        code = read_delta(base, total, at, stated, &d)
        if code:
            return _DELTA_REASONS[code]
        at = d.end
        found.append((
            bool(d.destroy), key_of(&d.flow) if d.destroy else entry_of(&d.flow), d.incarnation,
            d.epoch, d.count, d.contribution, bool(d.refresh), d.flow.rich,
        ))
    return found


cdef Flow plain_flow(object entry) except *:
    cdef Flow flow
    flow_from(entry, &flow)
    if entry.sctp is not None or entry.synproxy is not None:
        flow.rich |= RICH_ODD
    if flow.rich & (RICH_MASTER | RICH_SEQADJ | RICH_ODD):
        raise ValueError(f"the reference builds what {entry.key} asks for")
    return flow


cdef Flow addressed(object key) except *:
    cdef Flow flow
    memset(&flow, 0, sizeof(Flow))
    key_from(key, &flow)
    return flow


cdef bytes message_of(const uint8_t* room, uint32_t length):
    assert length, "a message for a family that is none of ours"
    return (<const char*>room)[:length]


def build_create(entry, *, hold_s=None, bint pristine=True):
    """As the reference's, of flows without master and sequence adjustment."""
    cdef uint8_t room[MESSAGE_ROOM]
    cdef Flow flow = plain_flow(entry)
    return message_of(room, write_create(room, &flow, hold_s or 0, pristine))


def build_update(entry, *, uint32_t hold_s, bint with_tcp=True):
    """What the applier's Update asks for."""
    cdef uint8_t room[MESSAGE_ROOM]
    cdef Flow flow = plain_flow(entry)
    return message_of(room, write_update(room, &flow, hold_s, with_tcp))


def build_adopt(key, *, mark=None, timeout_s=None):
    """What Adopt asks for; without a mark what SetTimeout does."""
    cdef uint8_t room[MESSAGE_ROOM]
    cdef Flow flow = addressed(key)
    return message_of(room, write_adopt(
        room, &flow, timeout_s is not None, timeout_s or 0, mark is not None, mark or 0
    ))


def build_delete(key):
    cdef uint8_t room[MESSAGE_ROOM]
    cdef Flow flow = addressed(key)
    return message_of(room, write_delete(room, &flow))


def clear_liberal(key):
    cdef uint8_t room[MESSAGE_ROOM]
    cdef Flow flow = addressed(key)
    return message_of(room, write_strict(room, &flow))
