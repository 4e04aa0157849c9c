# The registry's table: 1024 segments of slots, the epochs they name, counts and digests by group.

cdef enum:
    GROUPS = 16
    BUCKETS = 256
    EPOCHS_MAX = 65535
    PUT_NO_MEMORY = -1
    PUT_NO_EPOCH = -2

cdef struct Value:
    # What is known of a flow: sync.registry.Record without what is rich.
    uint64_t contribution
    uint64_t epoch
    uint32_t incarnation
    uint16_t count
    uint16_t user_mark
    uint8_t group
    uint8_t tcp_state
    uint8_t status

cdef struct GroupCounts:
    uint64_t sums[256]
    uint32_t counts[256]
    uint32_t flags[10]
    uint32_t flows

cdef struct EpochUse:
    uint64_t epoch
    uint32_t slots


cdef inline uint8_t status_bits(uint32_t status) noexcept nogil:
    """The bits of a ct status whose change is published, as the slot keeps them."""
    return <uint8_t>((status >> 1 & 3) | (status >> 4 & 4))


cdef class FlowTable:
    """What one node knows of every flow: 28 bytes each, found by the flow hash. Of one thread."""

    cdef HashSecret secret
    cdef Segment segments[1024]
    cdef GroupCounts* groups[16]
    cdef EpochUse* epochs
    cdef uint32_t epochs_room
    cdef uint32_t epochs_used
    cdef uint32_t epoch_last
    cdef uint64_t flows
    cdef int64_t allocated

    def __cinit__(self, bytes secret):
        self.secret = secret_from(secret)
        self.allocated = sizeof(self.segments) + sizeof(self.groups)
        if self.epoch_index(0) < 0:
            raise MemoryError
        self.epochs[0].slots = 1  # Epoch 0 always has its number, whatever becomes of others.

    def __dealloc__(self):
        cdef int i
        for i in range(SEGMENTS):
            free(self.segments[i].slots)
        for i in range(GROUPS):
            free(self.groups[i])
        free(self.epochs)

    # -- inside, without the GIL

    cdef inline Segment* segment_of(self, uint64_t h) noexcept nogil:
        return &self.segments[h >> HASH_LOW_BITS]

    cdef inline Slot* find(self, uint64_t h) noexcept nogil:
        """Valid until the next put or removal."""
        return segment_find(self.segment_of(h), h & ((<uint64_t>1 << HASH_LOW_BITS) - 1))

    cdef inline void fetch(self, uint64_t h) noexcept nogil:
        """Bring what `find` will look at into the cache."""
        segment_fetch(self.segment_of(h), h << SLOT_FLAGS)

    cdef GroupCounts* group_counts(self, unsigned int group) noexcept nogil:
        """NULL without memory."""
        if self.groups[group] == NULL:
            self.groups[group] = <GroupCounts*>calloc(1, sizeof(GroupCounts))
            if self.groups[group] != NULL:
                self.allocated += sizeof(GroupCounts)
        return self.groups[group]

    cdef int epoch_index(self, uint64_t epoch) noexcept nogil:
        """The number that stands for `epoch`, made if it is new: PUT_NO_... below 0."""
        cdef uint32_t i
        cdef uint32_t unused
        cdef uint32_t room
        cdef EpochUse* larger
        if self.epoch_last < self.epochs_used and self.epochs[self.epoch_last].epoch == epoch:
            return <int>self.epoch_last
        unused = self.epochs_used
        for i in range(self.epochs_used):
            if self.epochs[i].epoch == epoch:
                self.epoch_last = i
                return <int>i
            if self.epochs[i].slots == 0:
                unused = i
        if unused == self.epochs_room:
            if unused == EPOCHS_MAX:
                return PUT_NO_EPOCH
            room = min(max(16, 2 * unused), <uint32_t>EPOCHS_MAX)
            larger = <EpochUse*>realloc(self.epochs, room * sizeof(EpochUse))
            if larger == NULL:
                return PUT_NO_MEMORY
            self.allocated += (room - self.epochs_room) * sizeof(EpochUse)
            self.epochs = larger
            self.epochs_room = room
        if unused == self.epochs_used:
            self.epochs_used += 1
        self.epochs[unused].epoch = epoch
        self.epochs[unused].slots = 0
        self.epoch_last = unused
        return <int>unused

    cdef inline uint64_t epoch_of(self, const Slot* slot) noexcept nogil:
        return self.epochs[slot.epoch].epoch

    cdef inline void count_in(self, const Slot* slot, uint64_t h, int sign) noexcept nogil:
        """Into (1) or out of (-1) the digest, the counts and the epoch's use."""
        cdef GroupCounts* group = self.groups[slot.group_tcp >> 4]
        cdef uint64_t flags = slot.hashed & SLOT_FLAG_MASK
        cdef int i
        group.sums[h >> 56] += slot.contribution if sign > 0 else -slot.contribution
        group.counts[h >> 56] += sign
        group.flows += sign
        self.flows += sign
        self.epochs[slot.epoch].slots += sign
        if flags:
            for i in range(SLOT_FLAGS):
                if flags >> i & 1:
                    group.flags[i] += sign

    cdef int put_value(self, uint64_t h, const Value* value) noexcept nogil:
        """Remember a flow. In one group its flags stay, in one incarnation its TCP state if none
        is said. 0, or PUT_NO_... and nothing has changed."""
        cdef uint8_t tcp_state
        cdef int epoch = self.epoch_index(value.epoch)
        cdef Slot* slot = self.find(h)
        cdef Slot item
        if epoch < 0:
            return epoch
        if self.group_counts(value.group) == NULL:
            return PUT_NO_MEMORY
        item.hashed = h << SLOT_FLAGS
        tcp_state = value.tcp_state
        if slot != NULL:
            if slot.group_tcp >> 4 == value.group:
                item.hashed |= slot.hashed & SLOT_FLAG_MASK
            if tcp_state == TCP_STATE_NONE and slot.incarnation == value.incarnation:
                tcp_state = slot.group_tcp & 15
        item.contribution = value.contribution
        item.incarnation = value.incarnation
        item.epoch = <uint16_t>epoch
        item.count = value.count
        item.user_mark = value.user_mark
        item.group_tcp = <uint8_t>(value.group << 4 | tcp_state)
        item.status = value.status
        if slot != NULL:
            self.count_in(slot, h, -1)
            slot[0] = item
        elif segment_add(self.segment_of(h), &item, &self.allocated) == NULL:
            return PUT_NO_MEMORY
        self.count_in(&item, h, 1)
        return 0

    cdef void remove_slot(self, uint64_t h, Slot* slot) noexcept nogil:
        self.count_in(slot, h, -1)
        segment_remove(self.segment_of(h), slot, &self.allocated)

    cdef void flag_slot(self, Slot* slot, uint64_t flags, bint on) noexcept nogil:
        """Set or clear `flags` of one slot."""
        cdef GroupCounts* group = self.groups[slot.group_tcp >> 4]
        cdef uint64_t changed = flags & (~slot.hashed if on else slot.hashed)
        cdef int i
        slot.hashed ^= changed
        for i in range(SLOT_FLAGS):
            if changed >> i & 1:
                group.flags[i] += 1 if on else -1

    # -- for Python

    def hash(self, key):
        """The flow hash of a `FlowKey`."""
        cdef Flow flow
        key_from(key, &flow)
        return flow_hash(&self.secret, &flow)

    def contribution(self, entry, uint32_t incarnation):
        """What this life of the flow adds to the sum of its bucket."""
        cdef Flow flow
        cdef bytes helper = b"" if entry.helper is None else entry.helper.encode("ascii", "replace")
        assert len(helper) <= 16, helper
        flow_from(entry, &flow)
        return flow_contribution(&self.secret, &flow, incarnation,
                                 <const uint8_t*><const char*>helper, len(helper))

    def __len__(self):
        return self.flows

    def __contains__(self, key):
        return self.find(self.hash_of(key)) != NULL

    cdef uint64_t hash_of(self, object key) except? 0:
        """Of a `FlowKey`, or the hash itself."""
        cdef Flow flow
        if isinstance(key, int):
            return key
        key_from(key, &flow)
        return flow_hash(&self.secret, &flow)

    def get(self, key):
        """(group, incarnation, epoch, count, contribution, status, TCP state, user's mark bits,
        flags, is rich) or None."""
        cdef Slot* slot = self.find(self.hash_of(key))
        if slot == NULL:
            return None
        cdef int tcp = slot.group_tcp & 15
        cdef int status = (slot.status & 3) << 1 | (slot.status & SLOT_SEQ_ADJUST) << 4
        return (
            slot.group_tcp >> 4, slot.incarnation, self.epoch_of(slot), slot.count,
            slot.contribution, status, -1 if tcp == TCP_STATE_NONE else tcp, slot.user_mark,
            slot.hashed & SLOT_FLAG_MASK, bool(slot.status & SLOT_RICH),
        )

    def put(self, key, int group, uint32_t incarnation, uint64_t epoch, uint16_t count,
            uint64_t contribution, uint32_t status, int tcp_state, uint16_t user_mark, bint rich,
            unsigned int add=0, unsigned int clear=0):
        """Remember a flow as of a version, by the rules of `put_value`; flags that it had are
        cleared if they are among `clear`, then those of `add` are set. False if more epochs are in use than
        have a number. Raises OverflowError where a count has more than 16 bits."""
        cdef Value value
        cdef uint64_t h
        cdef int done
        assert 1 <= group < GROUPS, group
        assert -1 <= tcp_state < TCP_STATE_NONE, tcp_state
        value.group = <uint8_t>group
        value.incarnation = incarnation
        value.epoch = epoch
        value.count = count
        value.contribution = contribution
        value.status = status_bits(status) | (SLOT_RICH if rich else 0)
        value.tcp_state = TCP_STATE_NONE if tcp_state < 0 else <uint8_t>tcp_state
        value.user_mark = user_mark
        h = self.hash_of(key)
        done = self.put_value(h, &value)
        if done == PUT_NO_MEMORY:
            raise MemoryError
        if done == 0 and (add or clear):
            assert (add | clear) <= SLOT_FLAG_MASK, (add, clear)
            self.flag_slot(self.find(h), clear & ~add, False)
            self.flag_slot(self.find(h), add, True)
        return done == 0

    def mark_rich(self, key):
        """More is known of this flow than is here: leave it to the reference."""
        cdef Slot* slot = self.find(self.hash_of(key))
        if slot != NULL:
            slot.status |= SLOT_RICH

    def remove(self, key):
        """What `get` gave, and the flow is forgotten."""
        cdef uint64_t h = self.hash_of(key)
        known = self.get(h)
        if known is not None:
            self.remove_slot(h, self.find(h))
        return known

    def flags(self, key):
        """Its flags, 0 for an unknown flow."""
        cdef Slot* slot = self.find(self.hash_of(key))
        return 0 if slot == NULL else slot.hashed & SLOT_FLAG_MASK

    def set(self, key, unsigned int flags):
        """Set these flags; False for an unknown flow."""
        return self.change(key, flags, True)

    def clear(self, key, unsigned int flags):
        """Clear these flags; False for an unknown flow."""
        return self.change(key, flags, False)

    cdef bint change(self, object key, unsigned int flags, bint on) except -1:
        cdef Slot* slot = self.find(self.hash_of(key))
        assert flags <= SLOT_FLAG_MASK, flags
        if slot == NULL:
            return False
        self.flag_slot(slot, flags, on)
        return True

    def set_all(self, int group, unsigned int flags, *, unsigned int unless=0, buckets=None):
        """Set these flags on every flow of a group, or of some buckets of it, that has none of
        the `unless` flags; how many these are."""
        cdef uint8_t wanted[256]
        cdef int bucket
        cdef uint64_t found
        assert flags <= SLOT_FLAG_MASK, flags
        memset(wanted, buckets is None, sizeof(wanted))
        for bucket in buckets or ():
            assert 0 <= bucket < BUCKETS, bucket
            wanted[bucket] = 1
        with nogil:
            found = self.change_all(group, flags, unless, wanted, True)
        return found

    def clear_all(self, int group, unsigned int flags):
        """Clear these flags on every flow of a group."""
        cdef uint8_t wanted[256]
        cdef int i
        cdef bint any_set = False
        assert flags <= SLOT_FLAG_MASK, flags
        for i in range(SLOT_FLAGS):
            if flags >> i & 1 and self.count_flag(group, 1 << i):
                any_set = True
        if any_set:
            memset(wanted, 1, sizeof(wanted))
            with nogil:
                self.change_all(group, flags, 0, wanted, False)

    cdef uint64_t change_all(self, int group, unsigned int flags, unsigned int unless,
                             const uint8_t* wanted, bint on) noexcept nogil:
        cdef Segment* segment
        cdef Slot* slot
        cdef uint64_t found = 0
        cdef uint32_t i
        cdef int s
        for s in range(SEGMENTS if group > 0 else 0):
            segment = &self.segments[s]
            if not wanted[s >> (SEGMENT_BITS - 8)]:  # A bucket is the top 8 bits of the hash.
                continue
            for i in range(segment.capacity):
                slot = &segment.slots[i]
                if slot.group_tcp >> 4 == group and not slot.hashed & unless:
                    found += 1
                    self.flag_slot(slot, flags, on)
        return found

    def count(self, int group):
        """The flows of a group."""
        assert 0 <= group < GROUPS, group
        return 0 if self.groups[group] == NULL else self.groups[group].flows

    def count_flag(self, int group, unsigned int flag):
        """The flows of a group that have this one flag."""
        cdef int i
        assert 0 <= group < GROUPS, group
        for i in range(SLOT_FLAGS):
            if flag == <unsigned int>1 << i:
                return 0 if self.groups[group] == NULL else self.groups[group].flags[i]
        raise ValueError(f"{flag} is not one flag")

    def drop_flagged(self, int group, unsigned int flags):
        """Forget the flows of a group that have all these flags: how many they were, and the
        hashes of the rich ones among them."""
        cdef Segment* segment
        cdef Slot* slot
        cdef uint64_t h
        cdef uint32_t i
        cdef uint32_t capacity
        cdef int s
        cdef list rich = []
        cdef uint64_t before = self.flows
        for s in range(SEGMENTS):
            segment = &self.segments[s]
            i = 0
            while i < segment.capacity:
                slot = &segment.slots[i]
                if slot.group_tcp >> 4 == group > 0 and slot.hashed & flags == flags:
                    h = <uint64_t>s << HASH_LOW_BITS | slot.hashed >> SLOT_FLAGS
                    if slot.status & SLOT_RICH:
                        rich.append(h)
                    capacity = segment.capacity
                    self.remove_slot(h, slot)
                    if segment.capacity != capacity:
                        i = 0  # All have moved; else only the next one, into its place.
                else:
                    i += 1
        return before - self.flows, rich

    def digest(self, int group):
        """(sum, count) of each of the 256 buckets of a group."""
        cdef int i
        assert 0 <= group < GROUPS, group
        cdef GroupCounts* counts = self.groups[group]
        if counts == NULL:
            return ((0, 0),) * BUCKETS
        return tuple([(counts.sums[i], counts.counts[i]) for i in range(BUCKETS)])

    @property
    def allocated_bytes(self):
        """Everything allocated for it, in bytes."""
        return self.allocated
