# cython: language_level=3, boundscheck=False, wraparound=False
"""A reader of deltas that is told of more bytes than there are: what the sanitizers must find."""

include "native_layout.pxi"
include "native_hash.pxi"
include "native_decode.pxi"


def read_beyond(bytes payload not None, uint32_t more):
    """Reads `payload` as if `more` bytes followed it."""
    cdef NativeDelta d
    return read_delta(<const uint8_t*><const char*>payload, <uint32_t>len(payload) + more, 0, NULL, &d)
