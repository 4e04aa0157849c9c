# What the kernel calls its socket interface.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h" nogil:
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    enum:
        MSG_DONTWAIT
        MSG_TRUNC
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, void* timeout)

cdef extern from "time.h" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    enum:
        CLOCK_MONOTONIC
        CLOCK_BOOTTIME
    int clock_gettime(int clock, timespec* now)

cdef extern from "netinet/in.h" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr

cdef extern from "sys/socket.h" nogil:
    enum:
        AF_INET
        AF_INET6
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int ppoll(pollfd* fds, unsigned long count, const timespec* timeout, const void* mask)


cdef inline double monotonic_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef inline int wait_readable(pollfd* fds, unsigned long count, double seconds) noexcept nogil:
    """As ppoll: how many are, 0 when the time is up, -1 with errno."""
    cdef timespec timeout
    seconds = max(seconds, 0.0)
    timeout.tv_sec = <int64_t>seconds
    timeout.tv_nsec = <int64_t>((seconds - <double>timeout.tv_sec) * 1e9)
    return ppoll(fds, count, &timeout, NULL)
