# A dump of a held group -> its liberal TCP flows, and the requests that make strict those whose
# windows the kernel has learnt: what sync.liberal.LiberalFlows does, one received buffer a call.

cdef class StrictMaker:
    """Of one thread, with its FlowTable and a batch of its own."""

    cdef FlowTable table
    cdef uint64_t liberal
    cdef readonly Batch batch

    def __cinit__(self, FlowTable table not None, unsigned int liberal):
        """`liberal` is the registry's flag of a flow that is to be asked for again."""
        assert 0 < liberal <= SLOT_FLAG_MASK, liberal
        self.table = table
        self.liberal = liberal
        self.batch = Batch()

    def judge(self, bytes dump not None, uint32_t at, int group, int wanted):
        """From offset `at` on: (where it stopped, how many were made strict, the messages of at
        most `wanted` flows that are still liberal). It stops at the end, or when the batch is
        full. Raises MalformedMessageError."""
        cdef const uint8_t* base = <const uint8_t*><const char*>dump
        cdef const uint8_t* here = base + at
        cdef const uint8_t* end = base + len(dump)
        cdef Message message
        cdef Extras extras
        cdef NativeDelta d
        cdef Slot* slot
        cdef list still = []
        cdef int more
        cdef uint32_t made = 0
        assert at <= <uint32_t>len(dump) and len(dump) <= 0x7FFFFFFF
        assert 1 <= group < 16, group
        self.batch.begin(dump, 0)
        while not self.batch.is_full():
            d.start = <uint32_t>(here - base)
            more = next_message(&here, end, &message)
            if more == 0:
                break
            if more < 0 or (message.kind == MSG_CT_NEW and parse_entry(&message, &d.flow, &extras) < 0):
                raise MalformedMessageError("a dump is cut, or shows an entry without both tuples")
            d.end = <uint32_t>(message.end - base)
            if message.kind != MSG_CT_NEW or <int>(d.flow.mark >> 28) != group:
                continue
            if not d.flow.has_tcp or not is_family(d.flow.family):
                continue
            slot = self.table.find(flow_hash(&self.table.secret, &d.flow))
            if not (d.flow.flags_orig | d.flow.flags_reply) & TCPF_LIBERAL:
                self.flag(slot, False)
            elif d.flow.flags_orig & d.flow.flags_reply & TCPF_MAXACK:
                self.batch.add(&d, APPLY_STRICT, write_strict(self.batch.next(), &d.flow))
                self.batch.ops += 1
                self.flag(slot, False)
                made += 1
            else:
                self.flag(slot, True)
                if slot != NULL and len(still) < wanted:
                    still.append(dump[d.start:d.end])
        return <uint32_t>(here - base), made, still

    cdef void flag(self, Slot* slot, bint on) noexcept nogil:
        if slot != NULL:
            self.table.flag_slot(slot, self.liberal, on)
