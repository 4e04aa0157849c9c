# One conntrack event -> the registry and deltas: sync.publish.Publisher.on_event, where it is
# plain. Whatever is not gives SLOW, before anything has changed.

cdef enum:
    DONE = 0
    SLOW = 1
    HEARD = 2

cdef enum:
    SAID_FIRST = 0
    SAID_UPDATE = 1
    SAID_DESTROY = 2
    RUNS_MAX = 512
    DEATHS_MAX = 512
    OUT_BYTES = 128 * 1024

cdef struct Run:
    # Whole deltas of one epoch that fit one datagram.
    uint64_t epoch
    uint32_t start
    uint32_t size
    uint32_t deltas
    uint32_t firsts

cdef struct Death:
    uint64_t flow
    uint32_t group

cdef struct Holding:
    # What this node holds now, and what the reference wants to see of it.
    uint64_t epochs[16]
    uint8_t held[16]
    uint8_t passing[16]
    uint8_t labelled  # Each first word is looked up: the event may leave labels out.
    uint32_t slow_flags
    uint32_t passed_by
    uint32_t unpassed
    uint32_t own_port

cdef struct Said:
    # Deltas on their way out, and what they were.
    uint32_t runs_used
    uint32_t deaths_used
    uint32_t used
    uint32_t room
    uint64_t counts[3]
    uint64_t echoes  # Events of our own doing, since ever: the socket has no filter.
    Run runs[512]
    Death deaths[512]
    uint8_t out[131072]


cdef class Incarnations:
    """splitmix64 (Steele, Lea, Flood 2014): the numbers of lives. Not secret, only different."""

    cdef uint64_t state

    def __init__(self, uint64_t seed):
        self.state = seed

    cdef inline uint64_t next(self) noexcept nogil:
        self.state += <uint64_t>0x9E3779B97F4A7C15
        cdef uint64_t z = self.state
        z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
        return z ^ (z >> 31)

    def getrandbits(self, int bits):
        """As `random.Random` has it; up to 64."""
        assert 1 <= bits <= 64, bits
        return self.next() >> (64 - bits)


cdef inline uint8_t* said_room(Said* said) noexcept nogil:
    """Room for one delta more, or NULL."""
    if said.used + DELTA_BYTES_MAX > OUT_BYTES or said.runs_used == RUNS_MAX:
        return NULL
    return said.out + said.used


cdef void said_more(Said* said, uint64_t epoch, uint32_t size, int what) noexcept nogil:
    """A delta of `size` bytes was written to `said_room`: append it to the last run if it fits."""
    cdef Run* run = NULL
    if said.runs_used:
        run = &said.runs[said.runs_used - 1]
        if run.epoch != epoch or run.size + size > said.room:
            run = NULL
    if run == NULL:
        run = &said.runs[said.runs_used]
        said.runs_used += 1
        run.epoch = epoch
        run.start = said.used
        run.size = run.deltas = run.firsts = 0
    run.size += size
    run.deltas += 1
    run.firsts += what == SAID_FIRST
    said.used += size
    said.counts[what] += 1


cdef inline bint has_room(const Said* said) noexcept nogil:
    """For what one event may need: two deltas in two runs, and a death."""
    return (
        said.used + 2 * DELTA_BYTES_MAX <= OUT_BYTES
        and said.runs_used + 2 <= RUNS_MAX
        and said.deaths_used < DEATHS_MAX
    )


cdef inline bint is_publishable(const Flow* flow) noexcept nogil:
    return flow.status & STATUS_ASSURED or flow.proto not in (PROTO_TCP, PROTO_SCTP)


cdef void say_destroy(FlowTable table, Said* said, uint64_t h, Slot* slot, const Flow* flow,
                      uint64_t epoch) noexcept nogil:
    """The flow is gone from this kernel."""
    cdef Stamp stamp
    cdef size_t size
    stamp.epoch = epoch
    stamp.incarnation = slot.incarnation
    stamp.count = slot.count if table.epoch_of(slot) == epoch else 0
    size = encode_destroy(said.out + said.used, flow, &stamp, epoch, slot.contribution)
    table.remove_slot(h, slot)
    said_more(said, epoch, <uint32_t>size, SAID_DESTROY)


cdef int say_first(FlowTable table, Incarnations random, Said* said, uint64_t h, const Flow* flow,
                   uint64_t epoch) noexcept nogil:
    """A flow of which nothing has been said. DONE, or PUT_NO_MEMORY."""
    cdef Stamp stamp
    cdef Value value
    cdef size_t size
    stamp.epoch = epoch
    stamp.incarnation = <uint32_t>(random.next() >> 32)
    stamp.count = 0
    value_of(flow, &stamp, &value)
    value.contribution = flow_contribution(&table.secret, flow, stamp.incarnation, NULL, 0)
    if table.put_value(h, &value) < 0:
        return PUT_NO_MEMORY
    size = encode_upsert(said.out + said.used, flow, &stamp, epoch, False)
    said_more(said, epoch, <uint32_t>size, SAID_FIRST)
    return DONE


cdef void value_of(const Flow* flow, const Stamp* stamp, Value* value) noexcept nogil:
    """A plain flow as the table keeps it; the contribution is the caller's."""
    value.epoch = stamp.epoch
    value.incarnation = stamp.incarnation
    value.count = <uint16_t>stamp.count
    value.user_mark = <uint16_t>flow.mark
    value.group = <uint8_t>(flow.mark >> 28)
    value.tcp_state = flow.tcp_state if flow.has_tcp else TCP_STATE_NONE
    value.status = status_bits(flow.status)


cdef struct Heard:
    # One event, read ahead of its turn.
    Flow flow
    uint64_t hashed
    uint8_t verdict
    uint8_t kind


cdef void hear_event(FlowTable table, const Holding* holding, const Message* message,
                     Heard* heard) noexcept nogil:
    """What can be known of an event before those before it are done; its slot is on its way into
    the cache."""
    cdef Extras extras
    heard.kind = <uint8_t>event_kind(message)
    heard.verdict = SLOW
    if heard.kind == 0:
        return
    if message.pid == holding.own_port and message.pid:
        heard.verdict = DONE  # Our own doing.
    elif parse_entry(message, &heard.flow, &extras) == 0:  # Else the reference refuses it.
        heard.verdict = HEARD
        heard.hashed = flow_hash(&table.secret, &heard.flow)
        table.fetch(heard.hashed)


cdef int publish_event(FlowTable table, Incarnations random, const Holding* holding, Said* said,
                       const Heard* heard) noexcept nogil:
    """DONE, SLOW, or PUT_NO_MEMORY. The caller has made sure that `has_room`."""
    cdef const Flow* flow = &heard.flow
    cdef int kind = heard.kind
    cdef uint64_t h = heard.hashed
    cdef int group
    cdef int done
    cdef Slot* slot
    if heard.verdict != HEARD:
        said.echoes += heard.verdict == DONE
        return heard.verdict
    group = flow.mark >> 28
    slot = table.find(h)
    if not holding.held[group]:
        # A replica that goes leaves a hole, one without its mark is not found when it is taken
        # over, and what the registry does not know is left over, but for flows of the node itself.
        if slot == NULL:
            return SLOW if group else DONE
        if slot.group_tcp >> 4 != group and not holding.held[slot.group_tcp >> 4]:
            return SLOW
        return SLOW if kind == EVENT_DESTROY else DONE
    if flow.rich or flow.labels_len or flow.proto == PROTO_SCTP or (slot != NULL and (
        slot.status & SLOT_RICH or slot.hashed & holding.slow_flags
        or slot.group_tcp >> 4 != group
    )):
        return SLOW
    done = publish_flow(table, random, holding, said, h, slot, flow, kind)
    if done == DONE and holding.passing[group]:
        slot = table.find(h)
        if slot != NULL:
            table.flag_slot(slot, holding.passed_by, True)
            table.flag_slot(slot, holding.unpassed, False)
        if kind == EVENT_DESTROY and is_publishable(flow):
            said.deaths[said.deaths_used].flow = h
            said.deaths[said.deaths_used].group = group
            said.deaths_used += 1
    return done


cdef int publish_flow(FlowTable table, Incarnations random, const Holding* holding, Said* said,
                      uint64_t h, Slot* slot, const Flow* flow, int kind) noexcept nogil:
    cdef uint64_t epoch = holding.epochs[flow.mark >> 28]
    cdef bint publishable = is_publishable(flow)
    cdef bint stateless = flow.proto == PROTO_TCP and not flow.has_tcp
    cdef bint current
    cdef Value value
    cdef Stamp stamp
    cdef size_t size
    if kind == EVENT_DESTROY:
        if slot != NULL:
            say_destroy(table, said, h, slot, flow, epoch)
        return DONE
    if kind == EVENT_NEW or slot == NULL:
        # The kernel makes an entry anew: whatever had this tuple before is gone.
        if publishable and (
            stateless or holding.labelled or flow.status & STATUS_SEQ_ADJUST
        ):
            return SLOW  # To be looked up.
        if slot != NULL:
            say_destroy(table, said, h, slot, flow, epoch)
        return say_first(table, random, said, h, flow, epoch) if publishable else DONE
    if flow_contribution(&table.secret, flow, slot.incarnation, NULL, 0) != slot.contribution:
        return SLOW  # Another life, unheard of.
    if flow.has_tcp and flow.tcp_state <= TCP_ESTABLISHED and (slot.group_tcp & 15) in (
        TCP_TIME_WAIT, TCP_CLOSE
    ):
        return SLOW  # Likewise.
    if flow.status & STATUS_SEQ_ADJUST:
        return SLOW
    current = table.epoch_of(slot) == epoch
    if (
        current and status_bits(flow.status) == slot.status & 7
        and (not flow.has_tcp or flow.tcp_state == slot.group_tcp & 15)
        and <uint16_t>flow.mark == slot.user_mark
    ):
        return DONE
    if stateless:
        return SLOW
    stamp.epoch = epoch
    stamp.incarnation = slot.incarnation
    stamp.count = slot.count if current else 0
    value_of(flow, &stamp, &value)
    value.contribution = slot.contribution
    if table.put_value(h, &value) < 0:
        return PUT_NO_MEMORY
    size = encode_upsert(said.out + said.used, flow, &stamp, epoch, False)
    said_more(said, epoch, <uint32_t>size, SAID_UPDATE)
    return DONE
