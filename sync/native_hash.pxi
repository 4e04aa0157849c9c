# Flow hash and contribution: sync.flowhash on plain memory.

cdef extern from *:
    ctypedef unsigned long long uint128_t "unsigned __int128"

cdef enum:
    HASH_TEXT_BYTES_MAX = 40 + 4 + 36 + 16

cdef struct HashSecret:
    uint64_t k
    uint64_t k2

cdef uint64_t PRIME_61 = (<uint64_t>1 << 61) - 1


cdef inline uint64_t mod_61(uint128_t value) noexcept nogil:
    # 2^61 = 1 (mod p): the high part is added to the low one. `value` is below 2^123.
    cdef uint64_t folded = <uint64_t>(value & PRIME_61) + <uint64_t>(value >> 61)
    folded = (folded & PRIME_61) + (folded >> 61)
    return folded - PRIME_61 if folded >= PRIME_61 else folded


cdef inline uint64_t fmix64(uint64_t h) noexcept nogil:
    # MurmurHash3 (Austin Appleby, public domain), the 64-bit finaliser.
    h ^= h >> 33
    h *= <uint64_t>0xFF51AFD7ED558CCD
    h ^= h >> 33
    h *= <uint64_t>0xC4CEB9FE1A85EC53
    h ^= h >> 33
    return h


cdef uint64_t keyed_hash(const HashSecret* secret, const uint8_t* text, size_t size) noexcept nogil:
    cdef uint64_t h = 0
    cdef uint64_t word
    cdef size_t at = 0
    cdef size_t i
    while at + 8 <= size:
        # Seven bytes; the eighth read with them belongs to the next word.
        h = mod_61(<uint128_t>h * secret.k + (get64(text + at) >> 8))
        at += 7
    while at < size:
        word = 0
        for i in range(at, min(at + 7, size)):
            word = word << 8 | text[i]
        h = mod_61(<uint128_t>h * secret.k + word)
        at += 7
    h = mod_61(<uint128_t>h * secret.k + size)
    return fmix64(h ^ secret.k2)


cdef size_t flow_text(const Flow* flow, uint8_t* text) noexcept nogil:
    """Zone, family, protocol and original tuple: 16 or 40 bytes."""
    cdef size_t size = address_bytes(flow)
    put16(text, flow.zone)
    text[2] = 6 if flow.family == FAMILY_V6 else 4
    text[3] = flow.proto
    memcpy(text + 4, flow.osrc, size)
    memcpy(text + 4 + size, flow.odst, size)
    put16(text + 4 + 2 * size, flow.osport)
    put16(text + 6 + 2 * size, flow.odport)
    return 8 + 2 * size


cdef uint64_t flow_hash(const HashSecret* secret, const Flow* flow) noexcept nogil:
    cdef uint8_t text[HASH_TEXT_BYTES_MAX]
    return keyed_hash(secret, text, flow_text(flow, text))


cdef uint64_t flow_contribution(const HashSecret* secret, const Flow* flow, uint32_t incarnation,
                                const uint8_t* helper, size_t helper_len) noexcept nogil:
    """`helper_len` is at most 16."""
    cdef uint8_t text[HASH_TEXT_BYTES_MAX]
    cdef size_t size = address_bytes(flow)
    cdef size_t at = flow_text(flow, text)
    put32(text + at, incarnation)
    memcpy(text + at + 4, flow.rsrc, size)
    memcpy(text + at + 4 + size, flow.rdst, size)
    at += 4 + 2 * size
    put16(text + at, flow.rsport)
    put16(text + at + 2, flow.rdport)
    at += 4
    if helper_len:  # memcpy is not defined on a NULL, not even for nothing.
        memcpy(text + at, helper, helper_len)
    return keyed_hash(secret, text, at + helper_len)


cdef HashSecret secret_from(bytes secret) except *:
    """Of the 32 bytes: 8 of the multiplier, 8 of the last step."""
    cdef HashSecret made
    assert len(secret) == 32, len(secret)
    cdef const uint8_t* at = <const uint8_t*><const char*>secret
    made.k = get64(at) % PRIME_61
    made.k2 = get64(at + 8)
    if made.k == 0:
        made.k = 1
    return made
