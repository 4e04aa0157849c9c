# Deltas -> sealed datagrams -> the ring and every link: sync.outbox.Outbox, sync.ring.SendRing and
# the times of sync.ledger.Ledger, without a Python object a datagram.

cdef enum:
    SEND_LINKS_MAX = 512
    SEND_AT_ONCE = 64
    SEND_FAILURES_MAX = 64

cdef enum:
    SENT = 0
    SEND_NO_MEMORY = 3  # After those of SEAL_...

cdef struct Sent:
    # One slot of the ring: a sealed datagram, and what the ledger asks of it.
    uint8_t* at
    uint32_t size
    uint64_t published
    double sealed_at

cdef struct SendLink:
    sockaddr_in6 to  # Or a sockaddr_in, which is smaller.
    unsigned int to_size
    int fd

cdef struct SendFailure:
    int link
    int code
    uint32_t count


cdef class Sender:
    """The deltas of this node, in order: `put` them, `flush`. Filled datagrams go out with the
    next flush, or when `SEND_AT_ONCE` wait."""

    cdef Sealer sealer
    cdef Sent* slots
    cdef uint32_t slots_size
    cdef SendLink links[512]
    cdef int links_used
    cdef SendFailure failures[64]
    cdef int failures_used
    cdef uint8_t pending[1328]
    cdef uint32_t pending_room
    cdef uint32_t pending_used
    cdef uint64_t pending_published
    cdef uint64_t epoch
    cdef uint64_t unsent
    cdef mmsghdr messages[64]
    cdef iovec vectors[64]
    cdef readonly uint64_t high_water
    cdef public uint64_t published
    cdef readonly uint64_t datagrams
    cdef readonly uint64_t bytes
    cdef readonly uint64_t deltas

    def __cinit__(self, uint32_t ring_datagrams):
        assert ring_datagrams >= SEND_AT_ONCE, ring_datagrams
        self.slots = <Sent*>calloc(ring_datagrams, sizeof(Sent))
        if self.slots == NULL:
            raise MemoryError
        self.slots_size = ring_datagrams
        self.pending_room = sizeof(self.pending)

    def __dealloc__(self):
        if self.slots != NULL:
            self.empty()
            free(self.slots)

    cdef void empty(self) noexcept:
        cdef uint32_t i
        for i in range(self.slots_size):
            free(self.slots[i].at)
            memset(&self.slots[i], 0, sizeof(Sent))

    def begin(self, Sealer sealer not None, uint64_t published):
        """Another session, of which what is pending will be the first. So many flows were
        published before it."""
        if self.sealer is not None:
            self.send_all()
        self.sealer = sealer
        self.empty()
        self.high_water = 0
        self.unsent = 1
        self.published = self.pending_published = published

    def aim(self, links):
        """(descriptor, address as 4 or 16 bytes, port) of each link, whose place in the list is
        its name in `take_failures`. The caller tells before it closes one."""
        cdef SendLink* link
        cdef sockaddr_in* to4
        links = list(links)
        assert len(links) <= SEND_LINKS_MAX, len(links)
        self.links_used = 0
        for fd, address, port in links:
            assert len(address) in (4, 16), address
            link = &self.links[self.links_used]
            memset(link, 0, sizeof(SendLink))
            link.fd = fd
            if len(address) == 4:
                to4 = <sockaddr_in*>&link.to
                to4.sin_family = AF_INET
                put16(<uint8_t*>&to4.sin_port, port)
                memcpy(&to4.sin_addr, <const char*>(<bytes>address), 4)
                link.to_size = sizeof(sockaddr_in)
            else:
                link.to.sin6_family = AF_INET6
                put16(<uint8_t*>&link.to.sin6_port, port)
                memcpy(&link.to.sin6_addr, <const char*>(<bytes>address), 16)
                link.to_size = sizeof(sockaddr_in6)
            self.links_used += 1

    @property
    def room(self):
        """Bytes of deltas in one datagram; a delta alone may have more."""
        return self.pending_room

    @room.setter
    def room(self, uint32_t room):
        assert 0 < room <= sizeof(self.pending), room
        self.pending_room = room

    def put(self, uint64_t epoch, bytes deltas not None, uint32_t count):
        """Whole deltas of one epoch that fit one datagram; `published` counts them already."""
        assert len(deltas) <= <Py_ssize_t>sizeof(self.pending), len(deltas)
        self.check(self.append(epoch, <const uint8_t*>(<const char*>deltas),
                               <uint32_t>len(deltas), count))

    def flush(self):
        cdef int done
        with nogil:
            done = self.flush_all()
        self.check(done)

    @property
    def low_water(self):
        """The oldest seq that can still be repaired; high_water + 1 if there is none."""
        return self.high_water - min(self.high_water, <uint64_t>self.slots_size) + 1

    cdef Sent* slot(self, uint64_t seq) noexcept nogil:
        if seq < 1 or seq > self.high_water or self.high_water - seq >= self.slots_size:
            return NULL
        return &self.slots[(seq - 1) % self.slots_size]

    def get(self, uint64_t seq):
        """The datagram, or None if the ring has it not."""
        cdef Sent* slot = self.slot(seq)
        return None if slot == NULL else PyBytes_FromStringAndSize(<char*>slot.at, slot.size)

    def sent(self, uint64_t seq):
        """How many flows were published up to it and when it was sealed, or None."""
        cdef Sent* slot = self.slot(seq)
        return None if slot == NULL else (slot.published, slot.sealed_at)

    def take_failures(self):
        """(link, errno, datagrams) since the last time."""
        cdef int i
        found = [(self.failures[i].link, self.failures[i].code, self.failures[i].count)
                 for i in range(self.failures_used)]
        self.failures_used = 0
        return found

    @property
    def failed(self):
        """Has `take_failures` anything?"""
        return self.failures_used > 0

    cdef int check(self, int done) except -1:
        if done == SEND_NO_MEMORY:
            raise MemoryError
        sealed_or_raise(done, self.high_water + 1)
        return 0

    cdef int append(self, uint64_t epoch, const uint8_t* deltas, uint32_t size,
                    uint32_t count) noexcept nogil:
        cdef int done
        if self.pending_used and (
            epoch != self.epoch or self.pending_used + size > self.pending_room
        ):
            done = self.seal_pending()
            if done != SENT:
                return done
        self.epoch = epoch
        memcpy(self.pending + self.pending_used, deltas, size)
        self.pending_used += size
        self.pending_published = self.published
        self.deltas += count
        return SENT

    cdef int flush_all(self) noexcept nogil:
        cdef int done = self.seal_pending()
        self.send_all()
        return done

    cdef int seal_pending(self) noexcept nogil:
        """What is pending -> the ring. Bounded: what waits to be sent never leaves it unsent."""
        cdef timespec now
        cdef uint64_t seq = self.high_water + 1
        cdef uint32_t size = STAMP_BYTES + self.pending_used
        cdef Sent* slot = &self.slots[(seq - 1) % self.slots_size]
        cdef uint8_t* at
        cdef int done
        if self.pending_used == 0:
            return SENT
        at = <uint8_t*>malloc(WIRE_HEADER + size + AEAD_TAG_BYTES)
        if at == NULL:
            return SEND_NO_MEMORY
        clock_gettime(CLOCK_BOOTTIME, &now)
        put64(at + WIRE_HEADER,
              <uint64_t>now.tv_sec * <uint64_t>1000000000 + <uint64_t>now.tv_nsec)
        memcpy(at + WIRE_HEADER + STAMP_BYTES, self.pending, self.pending_used)
        done = self.sealer.seal_at(WIRE_DELTAS, seq, self.epoch, at, size)
        if done != SEALED:
            free(at)
            return done
        self.pending_used = 0
        free(slot.at)
        slot.at = at
        slot.size = WIRE_HEADER + size + AEAD_TAG_BYTES
        slot.published = self.pending_published
        slot.sealed_at = monotonic_s()
        self.high_water = seq
        self.datagrams += 1
        self.bytes += slot.size
        if seq + 1 - self.unsent >= SEND_AT_ONCE:
            self.send_all()
        return SENT

    cdef void send_all(self) noexcept nogil:
        cdef unsigned int count = <unsigned int>(self.high_water + 1 - self.unsent)
        cdef unsigned int i
        cdef Sent* slot
        cdef int link
        if count == 0:
            return
        for i in range(count):
            slot = &self.slots[(self.unsent - 1 + i) % self.slots_size]
            self.vectors[i].iov_base = slot.at
            self.vectors[i].iov_len = slot.size
            self.messages[i].msg_hdr.msg_iov = &self.vectors[i]
            self.messages[i].msg_hdr.msg_iovlen = 1
        for link in range(self.links_used):
            for i in range(count):
                self.messages[i].msg_hdr.msg_name = &self.links[link].to
                self.messages[i].msg_hdr.msg_namelen = self.links[link].to_size
            self.send_over(link, count)
        self.unsent = self.high_water + 1

    cdef void send_over(self, int link, unsigned int count) noexcept nogil:
        """A full buffer, a link without carrier: loss, repaired like loss, and the next one is
        tried all the same."""
        cdef unsigned int begun = 0
        cdef int done
        while begun < count:
            done = sendmmsg(self.links[link].fd, &self.messages[begun], count - begun,
                            MSG_DONTWAIT)
            if done > 0:
                begun += <unsigned int>done
            elif done == 0 or errno != EINTR:
                self.fail(link, errno if done < 0 else 0)
                begun += 1

    cdef void fail(self, int link, int code) noexcept nogil:
        cdef int i
        for i in range(self.failures_used):
            if self.failures[i].link == link and self.failures[i].code == code:
                self.failures[i].count += 1
                return
        if self.failures_used < SEND_FAILURES_MAX:
            self.failures[self.failures_used].link = link
            self.failures[self.failures_used].code = code
            self.failures[self.failures_used].count = 1
            self.failures_used += 1
