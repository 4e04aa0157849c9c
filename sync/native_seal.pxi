# sync.wire.Sealer: the same datagrams, in place and without the GIL.

from os import urandom

from sync.wire import derive_key

cdef extern from "sys/random.h" nogil:
    Py_ssize_t getrandom(void* out, size_t size, unsigned int flags)

cdef enum:
    WIRE_FRESH_AT = 40
    WIRE_TYPES_MAX = 8
    WIRE_RANDOM_BYTES = 16
    SEQ_NONCE_BITS = 29

cdef enum:
    SEALED = 0
    SEAL_REPEATS = 1
    SEAL_FAILED = 2


cdef class Sealer:
    """Seals the datagrams of one session; `sync.wire` says how. `draw` stands for getrandom where
    a test wants to know what it gave."""

    cdef Aead aead
    cdef KeyedHash hashed
    cdef object draw
    cdef bint drawn_by_python
    cdef uint64_t last[8]
    cdef uint32_t cluster_id
    cdef uint8_t sender_id
    cdef readonly uint64_t session
    cdef readonly uint8_t key_id

    def __init__(self, bytes master not None, *, uint8_t key_id, uint32_t cluster_id,
                 uint8_t sender_id, uint64_t session, draw=None):
        """Raises OSError where `crypto_problem` says why."""
        self.cluster_id = cluster_id
        self.sender_id = sender_id
        self.session = session
        self.draw = draw
        self.drawn_by_python = draw is not None
        self.hashed = KeyedHash((urandom if draw is None else draw)(AEAD_KEY_BYTES))
        memset(self.last, 0, sizeof(self.last))
        self.use_key(key_id, master)

    def use_key(self, uint8_t key_id, bytes master not None):
        """Seal with this key of the cluster from now on. Seq goes on where it was."""
        self.aead = Aead(derive_key(master, cluster_id=self.cluster_id, sender_id=self.sender_id,
                                    session=self.session))
        self.key_id = key_id

    def seal(self, int type, uint64_t seq, uint64_t epoch, bytes payload not None):
        """A whole datagram. `seq` must be above every earlier one of the same type."""
        cdef size_t size = len(payload)
        assert 1 <= type < WIRE_TYPES_MAX, type
        assert size <= 0xFFFF, size
        cdef bytes out = PyBytes_FromStringAndSize(NULL, WIRE_HEADER + size + AEAD_TAG_BYTES)
        cdef uint8_t* at = <uint8_t*>(<char*>out)
        memcpy(at + WIRE_HEADER, <const char*>payload, size)
        sealed_or_raise(self.seal_at(type, seq, epoch, at, size), seq)
        return out

    cdef int seal_at(self, int kind, uint64_t seq, uint64_t epoch, uint8_t* at,
                     size_t size) noexcept nogil:
        """The `size` bytes of payload stand at `at` + 48, and 16 bytes after them are free."""
        cdef uint8_t bound[56]  # What `fresh` is over, before the payload.
        cdef uint8_t nonce[12]
        if seq <= self.last[kind]:
            return SEAL_REPEATS
        self.last[kind] = seq
        memcpy(at, b"hCTS", 4)
        at[4] = WIRE_VERSION
        at[5] = <uint8_t>kind
        put16(at + 6, <uint16_t>size)
        put32(at + 8, self.cluster_id)
        at[12] = self.sender_id
        at[13] = self.key_id
        put16(at + 14, 0)
        put64(at + 16, self.session)
        put64(at + 24, epoch)
        put64(at + 32, seq)
        if not self.draw_to(bound):
            return SEAL_FAILED
        memcpy(bound + WIRE_RANDOM_BYTES, at, WIRE_FRESH_AT)
        if not self.hashed.digest(bound, sizeof(bound), at + WIRE_HEADER, size,
                                  at + WIRE_FRESH_AT):
            return SEAL_FAILED
        memcpy(nonce, at + WIRE_FRESH_AT, 8)
        put32(nonce + 8, <uint32_t>(
            <uint32_t>kind << SEQ_NONCE_BITS | (seq & ((1 << SEQ_NONCE_BITS) - 1))))
        if not self.aead.seal(nonce, at, WIRE_HEADER, at + WIRE_HEADER, size,
                              at + WIRE_HEADER):
            return SEAL_FAILED
        return SEALED

    cdef bint draw_to(self, uint8_t* out) noexcept nogil:
        """16 bytes for this very datagram: none are drawn ahead (docs/adr/0008)."""
        if self.drawn_by_python:
            with gil:
                return self.draw_by_python(out)
        # random(7): up to 256 bytes come whole.
        return getrandom(out, WIRE_RANDOM_BYTES, 0) == WIRE_RANDOM_BYTES

    cdef bint draw_by_python(self, uint8_t* out) noexcept:
        cdef bytes drawn = self.draw(WIRE_RANDOM_BYTES)
        if len(drawn) != WIRE_RANDOM_BYTES:
            return False
        memcpy(out, <const char*>drawn, WIRE_RANDOM_BYTES)
        return True


cdef int sealed_or_raise(int done, uint64_t seq) except -1:
    """A nonce that came twice would give the key away: never caught, the process dies."""
    assert done != SEAL_REPEATS, f"seq {seq} was sealed before"
    assert done == SEALED, "libcrypto or getrandom failed"
    return 0
