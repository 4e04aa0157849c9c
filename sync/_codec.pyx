# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, embedsignature=False, freethreading_compatible=False
"""The native hot path of ct_sync: the same bytes and values as the pure modules, without objects.

Parsing, building, the registry's table and system calls; no policy. Whatever is not common is
left to the Python classes, which stay the reference: `sync.native` says which of the two runs.
Everything here belongs to one thread. Lengths are checked by hand: boundscheck knows nothing of
pointers.
"""

include "native_layout.pxi"
include "native_hash.pxi"
include "native_slots.pxi"
include "native_crypto.pxi"
include "native_table.pxi"
include "native_decode.pxi"
include "native_build.pxi"
include "native_ask.pxi"
include "native_parse.pxi"
include "native_event.pxi"
include "native_encode.pxi"
include "native_publish.pxi"
include "native_sockets.pxi"
include "native_seal.pxi"
include "native_send.pxi"
include "native_pump.pxi"
include "native_batch.pxi"
include "native_apply.pxi"
include "native_open.pxi"
include "native_serve.pxi"
include "native_strict.pxi"
include "native_dump.pxi"
