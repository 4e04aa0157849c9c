# AES-256-GCM and keyed BLAKE2b from the system's libcrypto, loaded when first asked for: no headers
# and no link to it, and a machine without it runs the Python classes.

cdef extern from "dlfcn.h" nogil:
    enum:
        RTLD_NOW
        RTLD_LOCAL
    void* dlopen(const char* name, int flags)
    void* dlsym(void* library, const char* name)

cdef enum:
    # openssl/evp.h and openssl/core.h of OpenSSL 3, kept by its promise of one ABI a major version.
    EVP_CTRL_AEAD_GET_TAG = 0x10
    EVP_CTRL_AEAD_SET_TAG = 0x11
    OSSL_PARAM_UNSIGNED_INTEGER = 2
    AEAD_KEY_BYTES = 32
    AEAD_NONCE_BYTES = 12
    AEAD_TAG_BYTES = 16
    KEYED_HASH_BYTES = 8

cdef struct OsslParam:
    const char* key
    unsigned int data_type
    void* data
    size_t data_size
    size_t return_size

ctypedef void* (*NewFn)() noexcept nogil
ctypedef void (*FreeFn)(void*) noexcept nogil
ctypedef void* (*FetchFn)(void*, const char*, const char*) noexcept nogil
ctypedef void* (*FromFn)(void*) noexcept nogil
ctypedef int (*CipherInitFn)(
    void*, const void*, void*, const uint8_t*, const uint8_t*) noexcept nogil
ctypedef int (*CipherUpdateFn)(
    void*, uint8_t*, int*, const uint8_t*, int) noexcept nogil
ctypedef int (*CipherFinalFn)(void*, uint8_t*, int*) noexcept nogil
ctypedef int (*CtrlFn)(void*, int, int, void*) noexcept nogil
ctypedef int (*MacInitFn)(void*, const uint8_t*, size_t, const OsslParam*) noexcept nogil
ctypedef int (*MacUpdateFn)(void*, const uint8_t*, size_t) noexcept nogil
ctypedef int (*MacFinalFn)(void*, uint8_t*, size_t*, size_t) noexcept nogil

cdef struct Crypto:
    NewFn cipher_ctx_new
    FreeFn cipher_ctx_free
    FetchFn cipher_fetch
    CipherInitFn encrypt_init
    CipherUpdateFn encrypt_update
    CipherFinalFn encrypt_final
    CipherInitFn decrypt_init
    CipherUpdateFn decrypt_update
    CipherFinalFn decrypt_final
    CtrlFn ctrl
    FetchFn mac_fetch
    FromFn mac_ctx_new
    FreeFn mac_ctx_free
    MacInitFn mac_init
    MacUpdateFn mac_update
    MacFinalFn mac_final
    void* aes_256_gcm
    void* blake2b

cdef Crypto crypto  # Filled once by `crypto_problem`, never emptied.
cdef object crypto_verdict = None


cdef void* crypto_symbol(void* library, const char* name) except NULL:
    cdef void* found = dlsym(library, name)
    if found == NULL:
        raise ImportError(f"no {name.decode()}")
    return found


cdef void crypto_load(const char* name) except *:
    cdef void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise ImportError("it is not there")
    crypto.cipher_ctx_new = <NewFn>crypto_symbol(library, b"EVP_CIPHER_CTX_new")
    crypto.cipher_ctx_free = <FreeFn>crypto_symbol(library, b"EVP_CIPHER_CTX_free")
    crypto.cipher_fetch = <FetchFn>crypto_symbol(library, b"EVP_CIPHER_fetch")
    crypto.encrypt_init = <CipherInitFn>crypto_symbol(library, b"EVP_EncryptInit_ex")
    crypto.encrypt_update = <CipherUpdateFn>crypto_symbol(library, b"EVP_EncryptUpdate")
    crypto.encrypt_final = <CipherFinalFn>crypto_symbol(library, b"EVP_EncryptFinal_ex")
    crypto.decrypt_init = <CipherInitFn>crypto_symbol(library, b"EVP_DecryptInit_ex")
    crypto.decrypt_update = <CipherUpdateFn>crypto_symbol(library, b"EVP_DecryptUpdate")
    crypto.decrypt_final = <CipherFinalFn>crypto_symbol(library, b"EVP_DecryptFinal_ex")
    crypto.ctrl = <CtrlFn>crypto_symbol(library, b"EVP_CIPHER_CTX_ctrl")
    crypto.mac_fetch = <FetchFn>crypto_symbol(library, b"EVP_MAC_fetch")
    crypto.mac_ctx_new = <FromFn>crypto_symbol(library, b"EVP_MAC_CTX_new")
    crypto.mac_ctx_free = <FreeFn>crypto_symbol(library, b"EVP_MAC_CTX_free")
    crypto.mac_init = <MacInitFn>crypto_symbol(library, b"EVP_MAC_init")
    crypto.mac_update = <MacUpdateFn>crypto_symbol(library, b"EVP_MAC_update")
    crypto.mac_final = <MacFinalFn>crypto_symbol(library, b"EVP_MAC_final")
    crypto.aes_256_gcm = crypto.cipher_fetch(NULL, b"AES-256-GCM", NULL)
    crypto.blake2b = crypto.mac_fetch(NULL, b"BLAKE2BMAC", NULL)
    if crypto.aes_256_gcm == NULL or crypto.blake2b == NULL:
        raise ImportError("it has no AES-256-GCM, or no BLAKE2BMAC")


def crypto_problem():
    """Why `Aead` and `KeyedHash` cannot be made here; empty if they can."""
    global crypto_verdict
    if crypto_verdict is None:
        try:
            crypto_load(b"libcrypto.so.3")
            crypto_verdict = ""
        except ImportError as error:
            crypto_verdict = f"libcrypto.so.3: {error}"
    return crypto_verdict


cdef class Aead:
    """AES-256-GCM under one key, with nonces of 12 bytes and tags of 16. One thread's."""

    cdef void* sealing
    cdef void* opening

    def __cinit__(self, bytes key not None):
        """Raises OSError where `crypto_problem` says why."""
        cdef const uint8_t* at = <const uint8_t*>(<const char*>key)
        assert len(key) == AEAD_KEY_BYTES, len(key)
        if crypto_problem():
            raise OSError(crypto_problem())
        self.sealing = crypto.cipher_ctx_new()
        self.opening = crypto.cipher_ctx_new()
        if self.sealing == NULL or self.opening == NULL:
            raise MemoryError
        if (
            crypto.encrypt_init(self.sealing, crypto.aes_256_gcm, NULL, at, NULL) != 1
            or crypto.decrypt_init(self.opening, crypto.aes_256_gcm, NULL, at, NULL) != 1
        ):
            raise OSError("libcrypto refuses the key")

    def __dealloc__(self):
        if self.sealing != NULL:
            crypto.cipher_ctx_free(self.sealing)  # It wipes the key.
        if self.opening != NULL:
            crypto.cipher_ctx_free(self.opening)

    cdef bint seal(self, const uint8_t* nonce, const uint8_t* head, size_t head_size,
                   const uint8_t* plain, size_t size, uint8_t* out) noexcept nogil:
        """`size` sealed bytes and the tag to `out`, which may be `plain`. False: it failed."""
        cdef int done = 0
        return (
            crypto.encrypt_init(self.sealing, NULL, NULL, NULL, nonce) == 1
            and crypto.encrypt_update(self.sealing, NULL, &done, head, <int>head_size) == 1
            and crypto.encrypt_update(self.sealing, out, &done, plain, <int>size) == 1
            and crypto.encrypt_final(self.sealing, out + size, &done) == 1
            and crypto.ctrl(
                self.sealing, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_BYTES, out + size) == 1
        )

    cdef bint open(self, const uint8_t* nonce, const uint8_t* head, size_t head_size,
                   const uint8_t* sealed, size_t size, uint8_t* out) noexcept nogil:
        """`size` bytes of plaintext to `out`, of which nothing may be used where this says False:
        the tag, which follows the `size` sealed bytes, does not hold."""
        cdef int done = 0
        return (
            crypto.decrypt_init(self.opening, NULL, NULL, NULL, nonce) == 1
            and crypto.decrypt_update(self.opening, NULL, &done, head, <int>head_size) == 1
            and crypto.decrypt_update(self.opening, out, &done, sealed, <int>size) == 1
            and crypto.ctrl(
                self.opening, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_BYTES, <void*>(sealed + size)) == 1
            and crypto.decrypt_final(self.opening, out + size, &done) == 1
        )

    def seal_bytes(self, bytes nonce not None, bytes plain not None, bytes head not None):
        """As `cryptography`'s AESGCM.encrypt: sealed bytes and tag."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, len(plain) + AEAD_TAG_BYTES)
        assert len(nonce) == AEAD_NONCE_BYTES, len(nonce)
        if not self.seal(<const uint8_t*>(<const char*>nonce),
                         <const uint8_t*>(<const char*>head), len(head),
                         <const uint8_t*>(<const char*>plain), len(plain),
                         <uint8_t*>(<char*>out)):
            raise OSError("libcrypto does not seal")
        return out

    def open_bytes(self, bytes nonce not None, bytes sealed not None, bytes head not None):
        """The plaintext, or None: the tag does not hold."""
        cdef Py_ssize_t size = len(sealed) - AEAD_TAG_BYTES
        cdef bytes out
        assert len(nonce) == AEAD_NONCE_BYTES, len(nonce)
        if size < 0:
            return None
        out = PyBytes_FromStringAndSize(NULL, size)
        if not self.open(<const uint8_t*>(<const char*>nonce),
                         <const uint8_t*>(<const char*>head), len(head),
                         <const uint8_t*>(<const char*>sealed), size, <uint8_t*>(<char*>out)):
            return None
        return out


cdef class KeyedHash:
    """BLAKE2b of 8 bytes under one key (RFC 7693), as hashlib's. One thread's."""

    cdef void* context

    def __cinit__(self, bytes key not None):
        """Raises OSError where `crypto_problem` says why."""
        cdef size_t size = KEYED_HASH_BYTES
        cdef OsslParam parameters[2]
        assert 1 <= len(key) <= 64, len(key)
        if crypto_problem():
            raise OSError(crypto_problem())
        memset(parameters, 0, sizeof(parameters))  # The second one is the end.
        parameters[0].key = b"size"
        parameters[0].data_type = OSSL_PARAM_UNSIGNED_INTEGER
        parameters[0].data = &size
        parameters[0].data_size = sizeof(size)
        self.context = crypto.mac_ctx_new(crypto.blake2b)
        if self.context == NULL:
            raise MemoryError
        if crypto.mac_init(self.context, <const uint8_t*>(<const char*>key), len(key),
                           parameters) != 1:
            raise OSError("libcrypto refuses the key")

    def __dealloc__(self):
        if self.context != NULL:
            crypto.mac_ctx_free(self.context)

    cdef bint digest(self, const uint8_t* first, size_t first_size, const uint8_t* second,
                     size_t second_size, uint8_t* out) noexcept nogil:
        """8 bytes to `out`, over both parts. False: it failed."""
        cdef size_t done = 0
        return (
            crypto.mac_init(self.context, NULL, 0, NULL) == 1
            and crypto.mac_update(self.context, first, first_size) == 1
            and crypto.mac_update(self.context, second, second_size) == 1
            and crypto.mac_final(self.context, out, &done, KEYED_HASH_BYTES) == 1
            and done == KEYED_HASH_BYTES
        )

    def digest_bytes(self, bytes first not None, bytes second not None):
        cdef uint8_t out[8]
        if not self.digest(<const uint8_t*>(<const char*>first), len(first),
                           <const uint8_t*>(<const char*>second), len(second), out):
            raise OSError("libcrypto does not hash")
        return PyBytes_FromStringAndSize(<char*>out, KEYED_HASH_BYTES)
