# A socket's datagrams -> opened, in order, into the receiver's batch.
#
# It does what sync.wire.Opener, sync.inbox.Inbox and sync.stream.StreamReceiver do with the next
# datagram of an accepted session of which nothing is missing, and with copies of what is applied.
# At anything else it stops, having changed nothing; the caller gives that one datagram to the
# reference. What is forged costs a copied datagram one look at its header, as there.

cdef enum:
    # sync.wire
    WIRE_HEADER = 48
    WIRE_TAG = 16
    WIRE_VERSION = 2
    WIRE_DELTAS = 1
    WIRE_SENDERS = 64
    STAMP_BYTES = 8

cdef enum:
    ARRIVALS = 64
    # sync.transport.DATAGRAM_BYTES_MAX, and a bit, lest all begin in one cache set.
    ARRIVAL_BYTES = 2048
    ARRIVAL_STRIDE = 2048 + 192

cdef enum:
    OPEN_EMPTY = 0
    OPEN_FULL = 1
    OPEN_RAW = 2
    OPEN_UNKEYED = 3
    OPEN_REST = 4

cdef struct Stream:
    # sync.stream: an accepted session, as of the last `stand`, and what it was opened with.
    uint64_t session
    uint64_t delivered
    bint accepted
    bint plain  # Nothing is buffered or missed.
    bint moved
    bint keyed
    uint8_t key_id
    uint64_t keyed_session

cdef struct Sealed:
    uint64_t sent_ns
    uint8_t sender


cdef class Arrivals:
    """Takes what it may of what waits in a socket. `load`, then `run` until it says EMPTY, doing
    each time what it asks for: FULL, send the batch; RAW, `last` is for the reference; UNKEYED,
    likewise, and then `use_key`; REST, `rest` is for the reference."""

    EMPTY = OPEN_EMPTY
    FULL = OPEN_FULL
    RAW = OPEN_RAW
    UNKEYED = OPEN_UNKEYED
    REST = OPEN_REST

    cdef Receiver receiver
    cdef uint32_t cluster_id
    cdef uint8_t* buffer
    cdef mmsghdr headers[64]
    cdef iovec vectors[64]
    cdef unsigned int filled
    cdef unsigned int next
    cdef Stream streams[64]
    cdef list aeads  # Of each sender, that of `keyed_session`.
    cdef Sealed stamps[64]
    cdef unsigned int stamped
    cdef readonly uint64_t copies
    # Of the datagram whose deltas are being taken.
    cdef bytes payload
    cdef uint64_t epoch
    cdef uint8_t sender

    def __cinit__(self, Receiver receiver not None, *, uint32_t cluster_id):
        cdef int i
        self.aeads = [None] * WIRE_SENDERS
        self.receiver = receiver
        self.cluster_id = cluster_id
        self.buffer = <uint8_t*>malloc(ARRIVALS * ARRIVAL_STRIDE)
        if self.buffer == NULL:
            raise MemoryError
        for i in range(ARRIVALS):
            self.vectors[i].iov_base = self.buffer + i * ARRIVAL_STRIDE
            self.vectors[i].iov_len = ARRIVAL_BYTES
            self.headers[i].msg_hdr.msg_iov = &self.vectors[i]
            self.headers[i].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.buffer)

    # -- what the caller says

    def use_key(self, int sender_id, uint64_t session, int key_id, bytes key not None):
        """Of a session of which the reference has opened something with this key."""
        cdef Stream* s = self.stream_of(sender_id)
        assert 0 <= key_id < 256, key_id
        self.aeads[sender_id] = Aead(key)
        s.keyed = True
        s.keyed_session = session
        s.key_id = <uint8_t>key_id

    def forget_keys(self):
        """The cluster has other keys now."""
        cdef Stream* s
        cdef int i
        for i in range(WIRE_SENDERS):
            s = &self.streams[i]
            s.keyed = False
            self.aeads[i] = None

    def stand(self, int sender_id, uint64_t session, uint64_t delivered, bint plain):
        """Where this sender's accepted session stands."""
        cdef Stream* s = self.stream_of(sender_id)
        s.session = session
        s.delivered = delivered
        s.accepted = True
        s.plain = plain
        s.moved = False

    cdef Stream* stream_of(self, int sender_id) except NULL:
        assert 0 < sender_id < WIRE_SENDERS, sender_id
        return &self.streams[sender_id]

    # -- the socket

    def load(self, int fd, unsigned int limit):
        """Take up to `limit` datagrams from a socket: how many. Raises OSError."""
        cdef int got
        assert self.next == self.filled and not self.stamped, "the last ones are not all done"
        assert 0 < limit <= ARRIVALS, limit
        self.next = self.filled = 0
        got = recvmmsg(fd, self.headers, limit, MSG_DONTWAIT, NULL)
        if got < 0:
            if errno == EAGAIN or errno == EINTR:
                return 0
            raise OSError(errno, "datagrams of peers")
        self.filled = <unsigned int>got
        return got

    def feed(self, datagrams):
        """As `load`, these instead of a socket's."""
        cdef bytes one
        cdef unsigned int i = 0
        assert self.next == self.filled and not self.stamped and len(datagrams) <= ARRIVALS
        for one in datagrams:
            self.headers[i].msg_len = <unsigned int>min(<size_t>len(one), <size_t>ARRIVAL_BYTES)
            memcpy(self.vectors[i].iov_base, <const char*>one, self.headers[i].msg_len)
            i += 1
        self.next, self.filled = 0, i

    def run(self):
        """Why it stopped."""
        cdef int why
        self.receiver.look()
        if self.payload is not None:
            why = self.take()
            if why:
                return why
        while self.next < self.filled:
            why = self.one(<const uint8_t*>self.vectors[self.next].iov_base,
                           self.headers[self.next].msg_len)
            self.next += 1
            if why:
                return why
        return OPEN_EMPTY

    def last(self):
        """The datagram that `run` stopped at."""
        assert 0 < self.next <= self.filled
        return (<const char*>self.vectors[self.next - 1].iov_base)[:self.headers[self.next - 1].msg_len]

    def rest(self):
        """Of the payload of the datagram that `run` stopped at, what was not taken: (sender, seq,
        deltas, epoch)."""
        assert self.payload is not None
        payload, self.payload = self.payload, None
        cdef uint32_t at = self.receiver.waiting()
        return self.sender, self.streams[self.sender].delivered, payload[at:], self.epoch

    def moved(self):
        """(sender, delivered) of each session that went on since it was said where it
        stands; (sender, time of sealing in ns) of each datagram since the last call."""
        cdef Stream* s
        cdef int i
        found = []
        for i in range(WIRE_SENDERS):
            s = &self.streams[i]
            if s.moved:
                s.moved = False
                found.append((i, s.delivered))
        stamps = [(self.stamps[i].sender, self.stamps[i].sent_ns) for i in range(<int>self.stamped)]
        self.stamped = 0
        return found, stamps

    # -- one datagram

    cdef int one(self, const uint8_t* d, uint32_t size) except -1:
        cdef Stream* s
        cdef Sealed* stamp
        cdef uint64_t seq
        cdef uint32_t length
        cdef bytes payload
        if size < WIRE_HEADER + WIRE_TAG or memcmp(d, b"hCTS", 4) or d[4] != WIRE_VERSION:
            return OPEN_RAW
        if d[5] != WIRE_DELTAS or get32(d + 8) != self.cluster_id or d[12] >= WIRE_SENDERS:
            return OPEN_RAW
        length = get16(d + 6)
        s = &self.streams[d[12]]
        if length + WIRE_HEADER + WIRE_TAG != size or not s.accepted or get64(d + 16) != s.session:
            return OPEN_RAW
        seq = get64(d + 32)
        if seq <= s.delivered:
            self.copies += 1
            return OPEN_EMPTY
        if seq != s.delivered + 1 or not s.plain or length < STAMP_BYTES:
            return OPEN_RAW
        if not s.keyed or s.keyed_session != s.session or s.key_id != d[13]:
            return OPEN_UNKEYED
        payload = self.opened(d, length)
        if payload is None:
            return OPEN_RAW
        self.epoch = get64(d + 24)
        if not self.receiver.prepare(payload, STAMP_BYTES, self.epoch):
            return OPEN_RAW
        s.delivered = seq
        s.moved = True
        self.sender = d[12]
        self.payload = payload
        stamp = &self.stamps[self.stamped]
        stamp.sender = self.sender
        stamp.sent_ns = get64(<const uint8_t*><const char*>payload)
        self.stamped += 1
        return self.take()

    cdef bytes opened(self, const uint8_t* d, uint32_t length):
        """None if the tag does not hold."""
        cdef bytes payload = PyBytes_FromStringAndSize(NULL, length)
        cdef Aead aead = self.aeads[d[12]]
        cdef uint8_t nonce[12]
        memcpy(nonce, d + 40, 8)
        # The low 29 bits of seq below 3 of the type: sync.wire.nonce_of.
        put32(nonce + 8, <uint32_t>WIRE_DELTAS << 29 | (get32(d + 36) & 0x1FFFFFFF))
        if aead.open(nonce, d, WIRE_HEADER, d + WIRE_HEADER, length, <uint8_t*><char*>payload):
            return payload
        return None

    cdef int take(self) except -1:
        """The deltas of `payload` that are not taken yet."""
        if self.receiver.take_prepared(self.payload, self.epoch, self.sender):
            self.payload = None
            return OPEN_EMPTY
        return OPEN_FULL if self.receiver.batch.is_full() else OPEN_REST
