# The event socket -> deltas, many events a call, without the GIL.

cdef enum:
    PUMP_LIMIT = 0
    PUMP_EMPTY = 1
    PUMP_OVERRUN = 2
    PUMP_RAW = 3
    PUMP_ERROR = 4
    PUMP_NO_MEMORY = 5
    PUMP_OTHER = 6
    PUMP_TIME = 7

cdef enum:
    PUMP_DATAGRAMS = 64
    # The longest event has well under 2,000; no power of two, or all would share cache sets.
    PUMP_BYTES = 4096 + 320
    PUMP_OTHERS_MAX = 63

cdef double PUMP_BURST_S = 0.002


cdef class EventPump:
    """Drains conntrack events into the registry and into deltas. What it leaves to the reference
    comes out raw and in order: handle it, then call again."""

    LIMIT = PUMP_LIMIT
    EMPTY = PUMP_EMPTY
    OVERRUN = PUMP_OVERRUN
    RAW = PUMP_RAW
    ERROR = PUMP_ERROR
    OTHER = PUMP_OTHER
    TIME = PUMP_TIME

    cdef FlowTable table
    cdef Sender sender
    cdef Incarnations random
    cdef Holding holding
    cdef Said* said
    cdef uint8_t* buffer
    cdef mmsghdr headers[64]
    cdef iovec vectors[64]
    cdef Heard heard[64]
    cdef unsigned int filled
    cdef unsigned int next
    cdef int error
    cdef double turned_at

    def __cinit__(self, FlowTable table not None, Incarnations random not None, *, int room,
                  int slow_flags, int passed_by, int unpassed, unsigned int own_port):
        """`room`: bytes of deltas in one datagram. Flows with one of the `slow_flags` are left to
        the reference."""
        cdef int i
        self.table = table
        self.random = random
        self.said = <Said*>calloc(1, sizeof(Said))
        self.buffer = <uint8_t*>malloc(PUMP_DATAGRAMS * PUMP_BYTES)
        if self.said == NULL or self.buffer == NULL:
            raise MemoryError
        self.room = room
        self.holding.slow_flags = slow_flags
        self.holding.passed_by = passed_by
        self.holding.unpassed = unpassed
        self.holding.own_port = own_port
        for i in range(PUMP_DATAGRAMS):
            self.vectors[i].iov_base = self.buffer + i * PUMP_BYTES
            self.vectors[i].iov_len = PUMP_BYTES
            self.headers[i].msg_hdr.msg_iov = &self.vectors[i]
            self.headers[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.said)
        free(self.buffer)

    @property
    def room(self):
        """Bytes of deltas in one datagram."""
        return self.said.room

    @room.setter
    def room(self, uint32_t room):
        assert 256 <= room <= OUT_BYTES, room
        self.said.room = room

    def hold(self, epochs, passing):
        """Group -> epoch of what this node holds now; the groups of which a pass is under way."""
        cdef int group
        memset(self.holding.held, 0, sizeof(self.holding.held))
        memset(self.holding.passing, 0, sizeof(self.holding.passing))
        for group, epoch in epochs.items():
            assert 1 <= group < GROUPS, group
            self.holding.held[group] = 1
            self.holding.epochs[group] = epoch
        for group in passing:
            assert 1 <= group < GROUPS, group
            self.holding.passing[group] = 1

    @property
    def echoes(self):
        """Events of our own doing that were heard, in all."""
        return self.said.echoes

    def look_up_first(self, bint labelled):
        """Whether the first word of each flow is left to the reference (`Publisher.labelled`)."""
        self.holding.labelled = labelled

    @property
    def pending(self):
        """Events that were received and not taken yet."""
        return self.filled - self.next

    def connect(self, Sender sender not None):
        """What is said goes there from now on, not to the caller."""
        self.sender = sender

    def drain(self, int fd, int limit):
        """Up to `limit` events: (why it stopped, events, the raw message or errno, runs of deltas
        as (epoch, bytes, count), (firsts, updates, destroys), deaths as (group, flow hash))."""
        cdef int why
        cdef int events = 0
        cdef int said = SENT
        with nogil:
            why = self.run(fd, limit, &events)
            if self.sender is not None:
                said = self.say()
        return self.outcome(why, events, said)

    def turns(self, int fd, others, double until, double pause_s, int limit):
        """Waits for events and sends what they say at once, turn after turn: until one of the
        descriptors `others` is readable or a signal came (OTHER), until it is `until` by
        CLOCK_MONOTONIC (TIME), or until `drain` would stop, but for an empty socket. What comes soon after a
        turn waits for company, for `pause_s`: a burst is not sent one by one. Answers as
        `drain`."""
        cdef pollfd fds[64]
        cdef int why
        cdef int count = 1
        cdef int events = 0
        cdef int said = SENT
        assert self.sender is not None
        assert not any(self.holding.passing[group] for group in range(GROUPS)), "deaths are asked"
        assert len(others) <= PUMP_OTHERS_MAX, len(others)
        fds[0].fd = fd
        for one in others:
            fds[count].fd = one
            count += 1
        with nogil:
            why = self.turn_until(fds, count, until, pause_s, limit, &events, &said)
        return self.outcome(why, events, said)

    cdef tuple outcome(self, int why, int events, int said):
        raw = None
        if why == PUMP_RAW:
            raw = self.last()
        elif why == PUMP_ERROR:
            raw = self.error
        elif why == PUMP_NO_MEMORY:
            raise MemoryError
        if self.sender is not None:
            self.sender.check(said)
        return why, events, raw, *self.take()

    cdef int turn_until(self, pollfd* fds, int count, double until, double pause_s, int limit,
                        int* events, int* said) noexcept nogil:
        cdef int why
        cdef int done
        cdef int i
        for i in range(count):
            fds[i].events = POLLIN
            fds[i].revents = 0
        while True:
            # What was received before and not taken is not seen by poll.
            if self.next == self.filled:
                done = wait_readable(fds, count, until - monotonic_s())
                if done == 0:
                    return PUMP_TIME
                if done < 0 or done > (fds[0].revents != 0):
                    return PUMP_OTHER
                if monotonic_s() - self.turned_at < PUMP_BURST_S and count > 1:
                    if wait_readable(fds + 1, count - 1, pause_s):
                        return PUMP_OTHER
            why = self.run(fds[0].fd, limit, events)
            said[0] = self.say()
            if said[0] != SENT or (why != PUMP_EMPTY and why != PUMP_LIMIT):
                return why
            said[0] = self.sender.flush_all()
            if said[0] != SENT:
                return why
            self.turned_at = monotonic_s()
            if why == PUMP_LIMIT and events[0] >= limit:
                return PUMP_LIMIT
            if self.turned_at >= until:
                return PUMP_TIME

    cdef int say(self) noexcept nogil:
        """What was said -> the sender, which counts what is published with it."""
        cdef Run* run
        cdef uint32_t i
        cdef int done
        for i in range(self.said.runs_used):
            run = &self.said.runs[i]
            self.sender.published += run.firsts
            done = self.sender.append(run.epoch, self.said.out + run.start, run.size, run.deltas)
            if done != SENT:
                return done
        self.said.used = self.said.runs_used = 0
        return SENT

    def feed(self, bytes datagram not None):
        """As `drain`, of one datagram that came from elsewhere."""
        cdef Message message
        cdef int why
        if self.next < self.filled or len(datagram) > PUMP_BYTES:
            raise ValueError("events of the socket wait, or the datagram is too long")
        memcpy(self.buffer, <const char*>datagram, len(datagram))
        self.headers[0].msg_len = <unsigned int>len(datagram)
        self.headers[0].msg_hdr.msg_flags = 0
        self.filled, self.next = 1, 1
        self.hear(0)
        why = publish_event(self.table, self.random, &self.holding, self.said, &self.heard[0])
        if why == PUMP_NO_MEMORY:
            raise MemoryError
        return why == SLOW, *self.take()

    cdef bytes last(self):
        cdef unsigned int i = self.next - 1
        return PyBytes_FromStringAndSize(<char*>self.buffer + i * PUMP_BYTES,
                                         min(self.headers[i].msg_len, <unsigned int>PUMP_BYTES))

    cdef tuple take(self):
        cdef Said* said = self.said
        cdef uint32_t i
        cdef list runs = []
        cdef list deaths = []
        for i in range(said.runs_used):
            start = <char*>said.out + said.runs[i].start
            runs.append((said.runs[i].epoch, PyBytes_FromStringAndSize(start, said.runs[i].size),
                         said.runs[i].deltas))
        for i in range(said.deaths_used):
            deaths.append((said.deaths[i].group, said.deaths[i].flow))
        counts = said.counts[SAID_FIRST], said.counts[SAID_UPDATE], said.counts[SAID_DESTROY]
        said.used = said.runs_used = said.deaths_used = 0
        memset(said.counts, 0, sizeof(said.counts))
        return runs, counts, deaths

    cdef int run(self, int fd, int limit, int* events) noexcept nogil:
        cdef int done
        while events[0] < limit and has_room(self.said):
            if self.next == self.filled:
                done = self.receive(fd, limit - events[0])
                if done != DONE:
                    return done
            self.next += 1
            events[0] += 1
            done = publish_event(self.table, self.random, &self.holding, self.said,
                                 &self.heard[self.next - 1])
            if done == SLOW:
                return PUMP_RAW
            if done != DONE:
                return PUMP_NO_MEMORY
        return PUMP_LIMIT

    cdef int receive(self, int fd, int limit) noexcept nogil:
        cdef int got
        cdef int i
        for i in range(PUMP_DATAGRAMS):
            self.headers[i].msg_hdr.msg_flags = 0
        while True:
            got = recvmmsg(fd, self.headers, min(limit, PUMP_DATAGRAMS), MSG_DONTWAIT, NULL)
            if got >= 0 or errno != EINTR:
                break
        self.next = 0
        self.filled = max(got, 0)
        for i in range(got):
            self.hear(i)
        if got > 0:
            return DONE
        if got == 0 or errno == EAGAIN:
            return PUMP_EMPTY
        if errno == ENOBUFS:
            return PUMP_OVERRUN
        self.error = errno
        return PUMP_ERROR

    cdef void hear(self, unsigned int i) noexcept nogil:
        """One datagram; the kernel puts one event into each."""
        cdef const uint8_t* at = self.buffer + i * PUMP_BYTES
        cdef const uint8_t* end = at + self.headers[i].msg_len
        cdef Message message
        self.heard[i].verdict = SLOW  # What is cut or several, the reference reads, or refuses.
        if self.headers[i].msg_hdr.msg_flags & MSG_TRUNC or self.headers[i].msg_len > PUMP_BYTES:
            return
        if next_message(&at, end, &message) == 1 and at == end:
            hear_event(self.table, &self.holding, &message, &self.heard[i])
