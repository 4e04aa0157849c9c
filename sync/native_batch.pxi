# A batch of ctnetlink requests: one system call, and what the kernel said to each.

from libc.errno cimport EAGAIN, errno

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send_to_kernel "send"(int fd, const void* buffer, size_t length, int flags)
    ssize_t receive_from_kernel "recv"(int fd, void* buffer, size_t length, int flags)

cdef enum:
    BATCH_OPS_MAX = 64
    BATCH_MESSAGES_MAX = 128
    ANSWER_BYTES = 64 << 10
    NETLINK_ERROR = 2
    NETLINK_HEADER = 16

cdef enum:
    APPLY_CREATE = 0
    APPLY_UPDATE = 1
    APPLY_UPDATE_WITHOUT_TCP = 2
    APPLY_REPLACE = 3
    APPLY_REPLACE_PART_2 = 4
    APPLY_REMOVE = 5
    APPLY_SWEEP = 6
    APPLY_STRICT = 7

_APPLY_NAMES = (
    "create", "update", "update_without_tcp", "replace", "replace", "remove", "sweep", "strict",
)

cdef struct Request:
    # One message, and the delta it came from: payload `payload`, bytes `start` to `end`.
    uint32_t at
    uint32_t length
    uint32_t payload
    uint32_t start
    uint32_t end
    uint32_t op


cdef class Batch:
    """Requests for the kernel in the order in which they must be done."""

    cdef uint8_t* room
    cdef uint32_t used
    cdef Request requests[128]
    cdef int32_t codes[128]
    cdef readonly uint32_t messages
    cdef readonly uint32_t ops
    cdef list payloads
    cdef uint32_t payload_count

    def __cinit__(self):
        self.payloads = []
        self.room = <uint8_t*>malloc(BATCH_MESSAGES_MAX * MESSAGE_ROOM + ANSWER_BYTES)
        if self.room == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.room)

    # -- filling it

    @property
    def full(self):
        """It must be sent before anything is added."""
        return self.is_full()

    cdef inline bint is_full(self) noexcept nogil:
        return self.ops == BATCH_OPS_MAX

    cdef int begin(self, bytes payload, uint64_t header_epoch) except -1:
        """What is added from now on comes from this payload."""
        if self.messages == 0:
            self.payloads.clear()
        self.payloads.append((payload, header_epoch))
        self.payload_count = <uint32_t>len(self.payloads)
        return 0

    cdef inline uint8_t* next(self) noexcept nogil:
        """MESSAGE_ROOM bytes: an operation has two messages at most, so there always are."""
        return self.room + self.used

    cdef inline void add(self, const NativeDelta* d, uint32_t op, uint32_t length) noexcept nogil:
        cdef Request* request = &self.requests[self.messages]
        request.at = self.used
        request.length = length
        request.payload = self.payload_count - 1
        request.start = d.start
        request.end = d.end
        request.op = op
        self.messages += 1
        self.used += length

    # -- emptying it

    def clear(self):
        """All of it is done."""
        self.used = self.messages = self.ops = 0
        self.payloads.clear()

    def request(self, uint32_t index):
        """(operation, whether it is the second message of a Replace, the delta, its datagram's
        epoch) of one message. Of a sweep and of "strict" it is the kernel's message instead of a delta."""
        if index >= self.messages:
            raise IndexError(index)
        cdef const Request* request = &self.requests[index]
        payload, header_epoch = self.payloads[request.payload]
        return (
            _APPLY_NAMES[request.op], request.op == APPLY_REPLACE_PART_2,
            payload[request.start:request.end], header_epoch,
        )

    def as_messages(self):
        """The messages as they will be sent, but for their sequence numbers."""
        cdef uint32_t i
        return [
            (<const char*>self.room)[self.requests[i].at:self.requests[i].at + self.requests[i].length]
            for i in range(self.messages)
        ]

    def send(self, int fd, uint32_t first):
        """Give all of it to the kernel, numbered from `first`: (index, errno) of each message
        that failed. Raises OSError if the socket fails; then it is not known what was done."""
        cdef int code
        cdef uint32_t i
        self.check(first)
        with nogil:
            code = self.exchange(fd, first)
        if code:
            raise OSError(code, "a batch of requests")
        return [(i, self.codes[i]) for i in range(self.messages) if self.codes[i]]

    cdef int check(self, uint32_t first) except -1:
        """The last barrier: a DELETE without a tuple would flush the table."""
        cdef uint32_t i
        cdef uint32_t length
        cdef uint16_t kind
        cdef uint8_t* message
        for i in range(self.messages):
            message = self.room + self.requests[i].at
            memcpy(&length, message, 4)
            memcpy(&kind, message + 4, 2)
            assert length == self.requests[i].length and length >= 24 and length % 4 == 0, length
            assert kind == CTB_NEW or is_one_delete(message, length), kind
            length = first + i
            memcpy(message + 8, &length, 4)
            self.codes[i] = 0
        return 0

    cdef int exchange(self, int fd, uint32_t first) noexcept nogil:
        """The kernel works through a request inside the sending call, so that all of its answers
        wait when it returns. 0 or an errno."""
        cdef ssize_t got
        cdef uint8_t* answers = self.room + BATCH_MESSAGES_MAX * MESSAGE_ROOM
        if send_to_kernel(fd, self.room, self.used, MSG_DONTWAIT) < 0:
            return errno
        while True:
            got = receive_from_kernel(fd, answers, ANSWER_BYTES, MSG_DONTWAIT)
            if got < 0:
                return 0 if errno == EAGAIN else errno
            read_errors(answers, <uint32_t>got, first, self.codes, self.messages)


cdef void read_errors(
    const uint8_t* answers, uint32_t total, uint32_t first, int32_t* codes, uint32_t count
) noexcept nogil:
    """NLMSG_ERROR: the negative errno behind the header, under the number of its request. What is
    cut short ends the walk."""
    cdef uint32_t at = 0
    cdef uint32_t length, number
    cdef uint16_t kind
    cdef int32_t code
    while total - at >= NETLINK_HEADER:
        memcpy(&length, answers + at, 4)
        memcpy(&kind, answers + at + 4, 2)
        memcpy(&number, answers + at + 8, 4)
        if length < NETLINK_HEADER or length > total - at:
            return
        if kind == NETLINK_ERROR and length >= NETLINK_HEADER + 4:
            memcpy(&code, answers + at + NETLINK_HEADER, 4)
            if number - first < count:
                codes[number - first] = <int32_t>(0 - <uint32_t>code)
        length = (length + 3) & ~<uint32_t>3
        if length > total - at:
            return
        at += length
