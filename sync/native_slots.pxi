# Slots of the registry, and one segment of them: an open-addressed array without empty pages.
#
# Robin Hood hashing with linear probing: the slots of a run are in the order of their homes, so a
# search ends as soon as it meets one that is nearer to its home. The home is a multiply-shift of
# the hash, so an array may have any length, grows by a sixteenth at load 0.95, and never takes
# more than one slot of 28 bytes per 0.89 of a flow.

cdef enum:
    SLOT_FLAGS = 10
    SLOT_FLAG_MASK = (1 << 10) - 1
    SLOT_SEEN_REPLY = 1 << 0
    SLOT_ASSURED = 1 << 1
    SLOT_SEQ_ADJUST = 1 << 2
    SLOT_RICH = 1 << 3
    SEGMENT_BITS = 10
    SEGMENTS = 1 << 10
    SEGMENT_SLOTS_MIN = 4
    HASH_LOW_BITS = 54

cdef packed struct Slot:
    # `hashed`: the flow hash without its top 10 bits, which are the segment's number, then the
    # flags. `group_tcp`: group << 4 | TCP state (15: none); group 0 is an empty slot.
    uint64_t hashed
    uint64_t contribution
    uint32_t incarnation
    uint16_t epoch
    uint16_t count
    uint16_t user_mark
    uint8_t group_tcp
    uint8_t status

cdef struct Segment:
    Slot* slots
    uint32_t capacity
    uint32_t count


cdef inline uint32_t slot_home(uint64_t hashed, uint32_t capacity) noexcept nogil:
    # The upper 32 of the 54 bits, times the length.
    return <uint32_t>(((hashed >> 32) * capacity) >> 32)


cdef inline uint32_t slot_distance(const Slot* slots, uint32_t at, uint32_t capacity) noexcept nogil:
    cdef uint32_t home = slot_home(slots[at].hashed, capacity)
    return at - home if at >= home else at + capacity - home


cdef inline bint slot_empty(const Slot* slot) noexcept nogil:
    return slot.group_tcp < 16


cdef Slot* segment_find(const Segment* segment, uint64_t low) noexcept nogil:
    """The slot of the hash `low` << 10, or NULL."""
    cdef uint32_t capacity = segment.capacity
    if segment.count == 0:
        return NULL
    cdef Slot* slots = segment.slots
    cdef uint32_t at = slot_home(low << SLOT_FLAGS, capacity)
    cdef uint32_t distance = 0
    while not slot_empty(&slots[at]):
        if slots[at].hashed >> SLOT_FLAGS == low:
            return &slots[at]
        if slot_distance(slots, at, capacity) < distance:
            return NULL
        at += 1
        if at == capacity:
            at = 0
        distance += 1
    return NULL


cdef Slot* slots_place(Slot* slots, uint32_t capacity, const Slot* item) noexcept nogil:
    """Put `item`, which is not there, into slots of which one is empty at least."""
    cdef uint32_t at = slot_home(item.hashed, capacity)
    cdef uint32_t distance = 0
    cdef uint32_t end
    while not slot_empty(&slots[at]) and slot_distance(slots, at, capacity) >= distance:
        at += 1
        if at == capacity:
            at = 0
        distance += 1
    end = at
    while not slot_empty(&slots[end]):
        end += 1
        if end == capacity:
            end = 0
    if end < at:  # The run goes on at the start of the array.
        memmove(&slots[1], &slots[0], end * sizeof(Slot))
        slots[0] = slots[capacity - 1]
        end = capacity - 1
    memmove(&slots[at + 1], &slots[at], (end - at) * sizeof(Slot))
    slots[at] = item[0]
    return &slots[at]


cdef int segment_resize(Segment* segment, uint32_t capacity, int64_t* allocated) noexcept nogil:
    """Move into an array of another length; -1 without memory, and nothing has changed."""
    cdef Slot* slots = NULL
    cdef uint32_t i
    if capacity:
        slots = <Slot*>calloc(capacity, sizeof(Slot))
        if slots == NULL:
            return -1
    for i in range(segment.capacity):
        if not slot_empty(&segment.slots[i]):
            slots_place(slots, capacity, &segment.slots[i])
    free(segment.slots)
    allocated[0] += (<int64_t>capacity - <int64_t>segment.capacity) * <int64_t>sizeof(Slot)
    segment.slots = slots
    segment.capacity = capacity
    return 0


cdef Slot* segment_add(Segment* segment, const Slot* item, int64_t* allocated) noexcept nogil:
    """Where `item`, which is not there, was put; NULL without memory."""
    cdef uint64_t wanted = segment.count + 1
    cdef uint32_t more
    if wanted * 20 > <uint64_t>segment.capacity * 19:
        more = segment.capacity // 16
        if more < SEGMENT_SLOTS_MIN:
            more = SEGMENT_SLOTS_MIN
        if segment_resize(segment, segment.capacity + more, allocated) < 0:
            return NULL
    segment.count += 1
    return slots_place(segment.slots, segment.capacity, item)


cdef void segment_remove(Segment* segment, Slot* slot, int64_t* allocated) noexcept nogil:
    """Take `slot` out: what follows it in its run moves back by one."""
    cdef Slot* slots = segment.slots
    cdef uint32_t capacity = segment.capacity
    cdef uint32_t at = <uint32_t>(slot - slots)
    cdef uint32_t end = at
    while True:
        end += 1
        if end == capacity:
            end = 0
        if slot_empty(&slots[end]) or slot_distance(slots, end, capacity) == 0:
            break
    if end <= at:  # Also where the run fills the array to its end.
        memmove(&slots[at], &slots[at + 1], (capacity - 1 - at) * sizeof(Slot))
        at = capacity - 1
        if end > 0:
            slots[at] = slots[0]
            memmove(&slots[0], &slots[1], (end - 1) * sizeof(Slot))
            at = end - 1
    else:
        memmove(&slots[at], &slots[at + 1], (end - 1 - at) * sizeof(Slot))
        at = end - 1
    memset(&slots[at], 0, sizeof(Slot))
    segment.count -= 1
    # Give back what a fall has left empty; without memory for the move it stays.
    if capacity > 4 * SEGMENT_SLOTS_MIN and segment.count < capacity // 10 * 7:
        segment_resize(segment, segment.count + segment.count // 10 + SEGMENT_SLOTS_MIN, allocated)
