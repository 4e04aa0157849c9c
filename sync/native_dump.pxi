# A dump received in large pieces, so that a busy interpreter is not asked for its lock a hundred
# entries at a time.

cdef enum:
    # The kernel fills at most 32 kB a receive (netlink_dump in af_netlink.c).
    DUMP_RECEIVE_BYTES = 64 << 10
    NETLINK_DONE = 3


cdef int dump_end(const uint8_t* at, const uint8_t* end, int* code) noexcept nogil:
    """1 if the dump ends in what was received, with its errno; 0 if it goes on; MALFORMED."""
    cdef const uint8_t* begin
    cdef Message message
    cdef int32_t negative
    cdef int more
    while True:
        begin = at
        more = next_message(&at, end, &message)
        if more <= 0:
            return more
        if message.kind == NETLINK_DONE or message.kind == NETLINK_ERROR:
            # struct nlmsgerr begins with the negative errno; so does what follows NLMSG_DONE.
            if message.end - begin < NLMSG_BYTES + 4:
                return MALFORMED
            memcpy(&negative, begin + NLMSG_BYTES, 4)
            code[0] = <int>(0 - <uint32_t>negative)
            return 1


def receive_dump(int fd, uint32_t room):
    """What is ready of a dump, in as many receives as fit `room` bytes (at least 64 kB): the bytes,
    and None while the dump goes on, or else the errno with which it ended. No bytes: nothing is
    ready yet. Raises OSError and MalformedMessageError."""
    assert room >= DUMP_RECEIVE_BYTES, room
    cdef uint8_t* buffer = <uint8_t*>malloc(room)
    cdef uint32_t used = 0
    cdef ssize_t got = 0
    cdef int failed = 0
    cdef int ended = 0
    cdef int code = 0
    if buffer == NULL:
        raise MemoryError
    try:
        with nogil:
            while ended == 0 and room - used >= DUMP_RECEIVE_BYTES:
                got = receive_from_kernel(fd, buffer + used, room - used, MSG_DONTWAIT)
                if got < 0 and errno == EINTR:
                    continue
                if got <= 0:
                    failed = errno if got < 0 and errno != EAGAIN else 0
                    break
                ended = dump_end(buffer + used, buffer + used + got, &code)
                # A message's length is padded to four bytes, and so is all that is received.
                used += <uint32_t>got
                if got & 3:
                    break
        if failed:
            raise OSError(failed, "a dump")
        if ended < 0:
            raise MalformedMessageError("a dump is cut")
        return PyBytes_FromStringAndSize(<char*>buffer, used), code if ended else None
    finally:
        free(buffer)
