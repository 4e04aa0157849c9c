# Slots of the registry, and one segment of them: a cuckoo table of buckets of eight.
#
# A flow is in one of two buckets: a search looks at sixteen slots at most, a removal clears one.
# An insertion takes the emptier bucket; if both are full it searches breadth-first for the
# shortest chain of moves, and makes them only when it ends at an empty slot, so nothing is in the
# air if there is none: the segment grows by a tenth instead. Both buckets are a multiply-shift of
# the hash, so a segment may have any number of them; it grows at load 0.97, which keeps a flow
# below 28 / 0.88 bytes.

cdef enum:
    SLOT_FLAGS = 10
    SLOT_FLAG_MASK = (1 << 10) - 1
    SLOT_SEEN_REPLY = 1 << 0
    SLOT_ASSURED = 1 << 1
    SLOT_SEQ_ADJUST = 1 << 2
    SLOT_RICH = 1 << 3
    SEGMENT_BITS = 10
    SEGMENTS = 1 << 10
    BUCKET_SLOTS = 8
    SEARCH_MAX = 512
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


cdef extern from *:
    void prefetch "__builtin_prefetch"(const void* at, int for_writing) noexcept nogil

cdef struct Step:
    # A full bucket on the way to an empty slot: reached by moving slot `slot` of bucket `parent`.
    uint32_t bucket
    int16_t parent
    uint8_t slot


cdef inline uint32_t bucket_first(uint64_t hashed, uint32_t buckets) noexcept nogil:
    # The upper 32 of the 54 bits, times the number of buckets.
    return <uint32_t>(((hashed >> 32) * buckets) >> 32)


cdef inline uint32_t bucket_second(uint64_t hashed, uint32_t buckets) noexcept nogil:
    cdef uint64_t mixed = (hashed >> SLOT_FLAGS) * <uint64_t>0x9E3779B97F4A7C15
    return <uint32_t>(((mixed >> 32) * buckets) >> 32)


cdef inline uint32_t bucket_other(uint64_t hashed, uint32_t buckets, uint32_t bucket) noexcept nogil:
    cdef uint32_t first = bucket_first(hashed, buckets)
    return bucket_second(hashed, buckets) if bucket == first else first


cdef inline bint slot_empty(const Slot* slot) noexcept nogil:
    return slot.group_tcp < 16


cdef inline Slot* bucket_find(Slot* slots, uint64_t hashed) noexcept nogil:
    """The slot of this hash in a bucket, or NULL."""
    cdef int i
    for i in range(BUCKET_SLOTS):
        if (slots[i].hashed ^ hashed) >> SLOT_FLAGS == 0 and not slot_empty(&slots[i]):
            return &slots[i]
    return NULL


cdef inline Slot* bucket_room(Slot* slots) noexcept nogil:
    cdef int i
    for i in range(BUCKET_SLOTS):
        if slot_empty(&slots[i]):
            return &slots[i]
    return NULL


cdef inline int bucket_used(const Slot* slots) noexcept nogil:
    cdef int used = 0
    cdef int i
    for i in range(BUCKET_SLOTS):
        used += slots[i].group_tcp >= 16
    return used


cdef inline Slot* segment_find(const Segment* segment, uint64_t low) noexcept nogil:
    """The slot of the hash whose lower 54 bits are `low`, or NULL."""
    cdef uint32_t buckets = segment.capacity // BUCKET_SLOTS
    cdef uint64_t hashed = low << SLOT_FLAGS
    cdef Slot* found
    if segment.count == 0:
        return NULL
    found = bucket_find(&segment.slots[BUCKET_SLOTS * bucket_first(hashed, buckets)], hashed)
    if found == NULL:
        found = bucket_find(&segment.slots[BUCKET_SLOTS * bucket_second(hashed, buckets)], hashed)
    return found


cdef inline void bucket_fetch(const Slot* bucket) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>bucket
    prefetch(at, 1)
    prefetch(at + 64, 1)
    prefetch(at + 128, 1)
    prefetch(at + BUCKET_SLOTS * sizeof(Slot) - 1, 1)


cdef inline void segment_fetch(const Segment* segment, uint64_t hashed) noexcept nogil:
    cdef uint32_t buckets = segment.capacity // BUCKET_SLOTS
    cdef const Slot* bucket
    if buckets:
        bucket = &segment.slots[BUCKET_SLOTS * bucket_first(hashed, buckets)]
        bucket_fetch(bucket)
        bucket = &segment.slots[BUCKET_SLOTS * bucket_second(hashed, buckets)]
        bucket_fetch(bucket)


cdef Slot* slots_place(Slot* slots, uint32_t buckets, const Slot* item) noexcept nogil:
    """Put `item`, which is not there; NULL if no chain of moves makes room, and nothing moved."""
    cdef uint32_t first = bucket_first(item.hashed, buckets)
    cdef uint32_t second = bucket_second(item.hashed, buckets)
    cdef Slot* at = NULL
    # To the bucket with more room: that leaves few of them full.
    if bucket_used(&slots[BUCKET_SLOTS * first]) <= bucket_used(&slots[BUCKET_SLOTS * second]):
        at = bucket_room(&slots[BUCKET_SLOTS * first])
    else:
        at = bucket_room(&slots[BUCKET_SLOTS * second])
    if at == NULL:
        at = slots_make_room(slots, buckets, first, second)
    if at != NULL:
        at[0] = item[0]
    return at


cdef inline bint on_the_way(const Step* steps, int step, uint32_t bucket) noexcept nogil:
    while step >= 0:
        if steps[step].bucket == bucket:
            return True
        step = steps[step].parent
    return False


cdef Slot* slots_make_room(Slot* slots, uint32_t buckets, uint32_t first,
                           uint32_t second) noexcept nogil:
    """A slot of one of these two full buckets, emptied by moves; NULL if none can be found."""
    cdef Step steps[SEARCH_MAX]
    cdef int used = 2 if second != first else 1
    cdef int step = 0
    cdef uint32_t other
    cdef uint8_t i
    cdef Slot* room
    cdef Slot* from_slot
    steps[0].bucket, steps[0].parent = first, -1
    steps[1].bucket, steps[1].parent = second, -1
    while step < used:
        for i in range(BUCKET_SLOTS):
            from_slot = &slots[BUCKET_SLOTS * steps[step].bucket + i]
            other = bucket_other(from_slot.hashed, buckets, steps[step].bucket)
            if on_the_way(steps, step, other):
                continue  # A chain must not come back to what it has moved already.
            room = bucket_room(&slots[BUCKET_SLOTS * other])
            if room != NULL:
                while True:
                    room[0] = from_slot[0]
                    room = from_slot
                    i = steps[step].slot
                    step = steps[step].parent
                    if step < 0:
                        room.group_tcp = 0
                        return room
                    from_slot = &slots[BUCKET_SLOTS * steps[step].bucket + i]
            if used < SEARCH_MAX:
                steps[used].bucket = other
                steps[used].parent = <int16_t>step
                steps[used].slot = i
                used += 1
        step += 1
    return NULL


cdef int segment_resize(Segment* segment, uint32_t capacity, int64_t* allocated) noexcept nogil:
    """Move into an array of another length; -1 without memory or if they do not fit, and nothing
    has changed."""
    cdef Slot* slots = NULL
    cdef uint32_t i
    if capacity:
        slots = <Slot*>calloc(capacity, sizeof(Slot))
        if slots == NULL:
            return -1
    for i in range(segment.capacity):
        if not slot_empty(&segment.slots[i]):
            if slots_place(slots, capacity // BUCKET_SLOTS, &segment.slots[i]) == NULL:
                free(slots)
                return -1
    free(segment.slots)
    allocated[0] += (<int64_t>capacity - <int64_t>segment.capacity) * <int64_t>sizeof(Slot)
    segment.slots = slots
    segment.capacity = capacity
    return 0


cdef Slot* segment_add(Segment* segment, const Slot* item, int64_t* allocated) noexcept nogil:
    """Where `item`, which is not there, was put; NULL without memory."""
    cdef uint64_t wanted = segment.count + 1
    cdef uint32_t capacity = segment.capacity
    cdef Slot* at = NULL
    if wanted * 100 <= <uint64_t>capacity * 97:
        at = slots_place(segment.slots, capacity // BUCKET_SLOTS, item)
    while at == NULL:
        capacity += max(capacity // 10, <uint32_t>BUCKET_SLOTS) // BUCKET_SLOTS * BUCKET_SLOTS
        if capacity > 16 * wanted + 64:
            return NULL  # No memory, or flows whose hashes are all alike: the secret is known.
        if segment_resize(segment, capacity, allocated) == 0:
            at = slots_place(segment.slots, capacity // BUCKET_SLOTS, item)
    segment.count += 1
    return at


cdef void segment_remove(Segment* segment, Slot* slot, int64_t* allocated) noexcept nogil:
    memset(slot, 0, sizeof(Slot))
    segment.count -= 1
    # Give back what a fall has left empty; without memory for the move it stays.
    if segment.capacity > 2 * BUCKET_SLOTS and segment.count < segment.capacity // 10 * 7:
        segment_resize(segment, (segment.count + segment.count // 10 + 15) & ~<uint32_t>7, allocated)
