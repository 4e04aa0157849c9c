# The attributes of one conntrack message -> Flow, and the views of it that tests compare.

from sync.ctnetlink_parse import MalformedMessageError


cdef int parse_helper(const Attribute* nest, Flow* flow) noexcept nogil:
    cdef const uint8_t* at = nest.at
    cdef Attribute leaf
    cdef size_t i
    cdef int more
    flow.helper_len = 0
    flow.rich &= ~<uint32_t>RICH_HELPER
    while True:
        more = next_attribute(&at, nest.at + nest.size, &leaf)
        if more <= 0:
            return more
        if leaf.kind == 1:  # CTA_HELP_NAME
            break
    while leaf.size and leaf.at[leaf.size - 1] == 0:
        leaf.size -= 1
    if leaf.size == 0:
        return 0  # The helper is gone.
    flow.rich |= RICH_HELPER
    if leaf.size > HELPER_BYTES_MAX:
        flow.rich |= RICH_ODD
        return 0
    for i in range(leaf.size):
        if leaf.at[i] >= 0x80:
            flow.rich |= RICH_ODD
            return 0
    memcpy(flow.helper, leaf.at, leaf.size)
    flow.helper_len = <uint8_t>leaf.size
    return 0


cdef int parse_seqadj(const Attribute* nest) noexcept nogil:
    """Only whether it is whole: the reference reads it."""
    cdef const uint8_t* at = nest.at
    cdef Attribute leaf
    cdef int more
    while True:
        more = next_attribute(&at, nest.at + nest.size, &leaf)
        if more <= 0:
            return more
        if 1 <= leaf.kind <= 3 and leaf.size < 4:
            return MALFORMED


cdef bint parse_synproxy(const Attribute* nest) noexcept nogil:
    """Does it say anything? An entry made by ctnetlink has the extension, with zeros."""
    cdef const uint8_t* at = nest.at
    cdef Attribute leaf
    cdef int more
    while True:
        more = next_attribute(&at, nest.at + nest.size, &leaf)
        if more <= 0:
            return more < 0  # Damaged: the reference refuses it.
        if leaf.size < 4 or get32(leaf.at):
            return True


cdef int parse_other(const Attribute* attribute, Flow* flow, uint16_t* zone) noexcept nogil:
    """An attribute that few messages have."""
    cdef OneTuple master
    cdef uint16_t kind = attribute.kind
    if kind == CTA_ZONE:
        if attribute.size < 2:
            return MALFORMED
        zone[0] = get16(attribute.at)
    elif kind == CTA_HELP:
        return parse_helper(attribute, flow)
    elif kind == CTA_LABELS:
        flow.labels_len = 0
        if 1 <= attribute.size <= LABELS_BYTES_MAX:
            memcpy(flow.labels, attribute.at, attribute.size)
            flow.labels_len = <uint8_t>attribute.size
        else:
            flow.rich |= RICH_ODD
    elif kind == CTA_TUPLE_MASTER:
        flow.rich |= RICH_MASTER
        return parse_tuple(attribute, &master)
    elif kind == CTA_SEQ_ADJ_ORIG or kind == CTA_SEQ_ADJ_REPLY:
        flow.rich |= RICH_SEQADJ
        return parse_seqadj(attribute)
    elif kind == CTA_SYNPROXY:
        if parse_synproxy(attribute):
            flow.rich |= RICH_SYNPROXY
    elif kind == CTA_STATUS or kind == CTA_TIMEOUT or kind == CTA_MARK or kind == CTA_ID:
        return MALFORMED
    return 0


cdef int parse_entry(const Message* message, Flow* flow, Extras* extras) noexcept nogil:
    """The entry of one CT message: 0 or MALFORMED. `flow.rich` tells what the reference must
    read again."""
    cdef const uint8_t* at = message.at
    cdef Attribute attribute
    cdef OneTuple orig
    cdef OneTuple reply
    cdef uint16_t zone = 0
    cdef bint has_orig = False
    cdef bint has_reply = False
    cdef uint16_t kind
    cdef int more
    cdef size_t size
    memset(flow, 0, sizeof(Flow))
    extras.has_time = 0
    extras.pid = message.pid
    while True:
        more = next_attribute(&at, message.end, &attribute)
        if more <= 0:
            break
        kind = attribute.kind
        more = 0
        if attribute.size == 4:
            if kind == CTA_STATUS:
                flow.status = get32(attribute.at)
            elif kind == CTA_TIMEOUT:
                flow.timeout = get32(attribute.at)
                flow.has_timeout = 1
            elif kind == CTA_MARK:
                flow.mark = get32(attribute.at)
            elif kind == CTA_ID:
                flow.kernel_id = get32(attribute.at)
                flow.has_kernel_id = 1
        elif kind == CTA_TUPLE_ORIG:
            more = parse_tuple(&attribute, &orig)
            has_orig = True
        elif kind == CTA_TUPLE_REPLY:
            more = parse_tuple(&attribute, &reply)
            has_reply = True
        elif kind == CTA_PROTOINFO:
            more = parse_protoinfo(&attribute, flow)
        elif kind == CTA_TIMESTAMP_EVENT:
            if attribute.size < 8:
                return MALFORMED
            extras.time_ns = get64(attribute.at)
            extras.has_time = 1
        else:
            more = parse_other(&attribute, flow, &zone)
        if more < 0:
            return MALFORMED
    if more < 0 or not has_orig or not has_reply:
        return MALFORMED
    flow.zone = zone if zone else orig.zone
    flow.family = orig.family
    flow.proto = orig.proto
    flow.osport, flow.odport = orig.sport, orig.dport
    flow.rsport, flow.rdport = reply.sport, reply.dport
    if reply.family != orig.family or reply.proto != orig.proto:
        flow.rich |= RICH_ODD
    size = 16 if orig.family == FAMILY_V6 else 4
    memcpy(flow.osrc, orig.src, size)
    memcpy(flow.odst, orig.dst, size)
    size = min(size, <size_t>(16 if reply.family == FAMILY_V6 else 4))
    memcpy(flow.rsrc, reply.src, size)
    memcpy(flow.rdst, reply.dst, size)
    if flow.status & STATUS_EXPECTED:
        flow.rich |= RICH_EXPECTED
    if flow.has_tcp and flow.tcp_state >= TCP_STATE_NONE:
        flow.rich |= RICH_ODD
    return 0


cdef inline int event_kind(const Message* message) noexcept nogil:
    """EVENT_..., or 0 for what is no conntrack event."""
    if message.kind == MSG_CT_NEW:
        # ctnetlink_conntrack_event: IPCT_NEW alone sets CREATE|EXCL.
        return EVENT_NEW if message.flags & NLM_F_CREATE else EVENT_UPDATE
    return EVENT_DESTROY if message.kind == MSG_CT_DELETE else 0


def read_events(buffer):
    """(kind, entry without master and sequence adjustment, port id, time, rich bits) of each
    conntrack event; entry None where it is odd. Raises MalformedMessageError."""
    cdef const uint8_t[::1] view = buffer
    cdef const uint8_t* at = &view[0] if view.shape[0] else NULL
    cdef const uint8_t* end = at + view.shape[0]
    cdef Message message
    cdef Extras extras
    cdef Flow flow
    cdef list found = []
    cdef int more
    cdef int kind
    while True:
        more = next_message(&at, end, &message)
        if more == 0:
            return found
        if more < 0:
            raise MalformedMessageError("a netlink message is cut or lies about its length")
        kind = event_kind(&message)
        if kind == 0:
            continue
        if parse_entry(&message, &flow, &extras) < 0:
            raise MalformedMessageError("a conntrack message is cut, or without both tuples")
        entry = None if flow.rich & RICH_ODD else entry_of(&flow)
        time_ns = extras.time_ns if extras.has_time else None
        found.append((kind, entry, message.pid, time_ns, flow.rich))
