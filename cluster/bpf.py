"""bpf(2) by ctypes: maps, programs, tcx links, pins, and reading them back.

A file descriptor is the only handle; the caller closes it (`fd` as a context). Attributes are
packed by hand after ``union bpf_attr`` (linux/bpf.h); fields left out are zero, which every
kernel takes. Raises `KernelError` with the request in words.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hafw.errors import KernelError

__all__ = [
    "LinkInfo",
    "ProgramInfo",
    "closing",
    "create_array",
    "detach_link",
    "link_info",
    "load_program",
    "map_id",
    "open_pin",
    "pin",
    "probe_tcx",
    "program_info",
    "query_tcx",
    "tcx_attach",
]

_MAP_CREATE, _PROG_LOAD, _OBJ_PIN, _OBJ_GET = 0, 5, 6, 7
_OBJ_GET_INFO, _PROG_QUERY, _LINK_CREATE = 15, 16, 28
_LINK_DETACH = 34

_MAP_TYPE_ARRAY = 2
_PROG_TYPE_SCHED_CLS = 3
_LINK_TYPE_TCX = 11
_F_MMAPABLE = 1 << 10
_F_BEFORE = 1 << 3
"""Attach in front of every program that is there (kernel/bpf/mprog.c)."""

_LOG_BYTES = 65536
_PROGRAMS_MAX = 64
_MAPS_MAX = 8

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_libc = ctypes.CDLL(None, use_errno=True)

_HINTS = {
    errno.EPERM: "root, or CAP_BPF with CAP_NET_ADMIN, is needed",
    errno.ENOSYS: "the kernel needs CONFIG_BPF_SYSCALL",
}


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a loaded program. `tag` is its hash of the instructions."""

    id: int
    name: str
    tag: bytes
    map_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A tcx link. `ifindex` is 0 once its device is gone; `attach_type` 46 in, 47 out."""

    id: int
    program_id: int
    ifindex: int
    attach_type: int


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close the descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _bpf(
    command: int, attr: bytes | bytearray, request: str, target: str, hint: str | None = None
) -> int:
    """One call; what the kernel writes back into the attributes lands in a bytearray `attr`."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        known = ", ".join(_SYSCALL)
        raise KernelError(
            errno.ENOSYS, request, target, f"hafw knows the number of bpf(2) on {known} only"
        )
    if isinstance(attr, bytearray):
        buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    else:
        buffer = ctypes.create_string_buffer(attr, len(attr))
    result: int = _libc.syscall(number, command, ctypes.byref(buffer), len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise KernelError(code, request, target, _HINTS.get(code) or hint)
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def create_array(name: str, value_bytes: int) -> int:
    """An array of one entry whose memory can be mapped (mmap(2)); one page at most."""
    attr = struct.pack(
        "=IIIIIII16s", _MAP_TYPE_ARRAY, 4, value_bytes, 1, _F_MMAPABLE, 0, 0, name.encode()
    )
    request = "the creation of a mappable BPF array"
    return _bpf(_MAP_CREATE, attr, request, name, "it needs Linux 5.5 or newer")


def load_program(name: str, code: bytes) -> int:
    """Load a tc classifier; the verifier's last words are in the error."""
    insns = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Dual BSD/GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attr = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_SCHED_CLS,
        len(code) // 8,
        _address(insns),
        _address(licence),
        1,
        _LOG_BYTES,
        _address(log),
        0,
        0,
        name.encode(),
    )
    try:
        return _bpf(_PROG_LOAD, attr, "a BPF program", name)
    except KernelError as error:
        words = log.value.decode(errors="replace").strip().splitlines()[-3:]
        hint = f"verifier: {' | '.join(words)}" if words else _HINTS.get(error.errno)
        raise KernelError(error.errno, error.request, error.target, hint) from None


def pin(fd: int, path: Path) -> None:
    """Give an object a name in a bpffs. The name must be free."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = struct.pack("=QII", _address(name), fd, 0)
    _bpf(_OBJ_PIN, attr, "a BPF pin", str(path))


def open_pin(path: Path) -> int:
    """Open a pinned object. KernelError with ENOENT if there is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = struct.pack("=QII", _address(name), 0, 0)
    return _bpf(_OBJ_GET, attr, "opening a BPF pin", str(path))


def tcx_attach(program_fd: int, ifindex: int, attach_type: int, device: str) -> int:
    """Attach by link, in front of any other program of that hook. Returns the link."""
    attr = struct.pack("=IIIIIIQ", program_fd, ifindex, attach_type, _F_BEFORE, 0, 0, 0)
    hint = "tcx needs Linux 6.6 or newer with CONFIG_NET_XGRESS" if not probe_tcx() else None
    return _bpf(_LINK_CREATE, attr, "a tcx attachment", device, hint)


def detach_link(link_fd: int) -> None:
    """Take a link off its device at once, whoever else holds it."""
    _bpf(_LINK_DETACH, struct.pack("=I", link_fd), "detaching a BPF link", f"fd {link_fd}")


def _object_info(fd: int, info: ctypes.Array[ctypes.c_char], what: str) -> bytes:
    attr = struct.pack("=IIQ", fd, len(info), _address(info))
    _bpf(_OBJ_GET_INFO, attr, f"reading back a {what}", f"fd {fd}")
    return info.raw


def program_info(fd: int) -> ProgramInfo:
    """struct bpf_prog_info: id at 4, tag at 8, nr_map_ids at 52, map_ids at 56, name at 64."""
    maps = ctypes.create_string_buffer(4 * _MAPS_MAX)
    info = ctypes.create_string_buffer(80)
    struct.pack_into("=IQ", info, 52, _MAPS_MAX, _address(maps))
    raw = _object_info(fd, info, "BPF program")
    (count,) = struct.unpack_from("=I", raw, 52)
    ids = struct.unpack_from(f"={min(count, _MAPS_MAX)}I", maps.raw)
    name = raw[64:80].split(b"\0", 1)[0].decode(errors="replace")
    return ProgramInfo(struct.unpack_from("=I", raw, 4)[0], name, raw[8:16], ids)


def map_id(fd: int) -> int:
    """struct bpf_map_info: id at 4."""
    raw = _object_info(fd, ctypes.create_string_buffer(80), "BPF map")
    value: int = struct.unpack_from("=I", raw, 4)[0]
    return value


def link_info(fd: int) -> LinkInfo:
    """struct bpf_link_info: type, id, prog_id; tcx.ifindex at 16, tcx.attach_type at 20."""
    raw = _object_info(fd, ctypes.create_string_buffer(64), "BPF link")
    kind, link_id, program_id = struct.unpack_from("=III", raw)
    if kind != _LINK_TYPE_TCX:
        return LinkInfo(link_id, program_id, 0, 0)
    ifindex, attach_type = struct.unpack_from("=II", raw, 16)
    return LinkInfo(link_id, program_id, ifindex, attach_type)


def query_tcx(ifindex: int, attach_type: int, device: str) -> list[tuple[int, int]]:
    """(program id, link id) of a hook, in the order they run; link id 0 without a link.

    The device is looked up in the caller's network namespace.
    """
    programs = ctypes.create_string_buffer(4 * _PROGRAMS_MAX)
    links = ctypes.create_string_buffer(4 * _PROGRAMS_MAX)
    attr = bytearray(
        struct.pack(
            "=IIIIQIIQQQQ",
            ifindex,
            attach_type,
            0,
            0,
            _address(programs),
            _PROGRAMS_MAX,
            0,
            0,
            _address(links),
            0,
            0,
        )
    )
    _bpf(_PROG_QUERY, attr, "reading back tcx programs", device)
    (count,) = struct.unpack_from("=I", attr, 24)
    program_ids = struct.unpack_from(f"={count}I", programs.raw)
    link_ids = struct.unpack_from(f"={count}I", links.raw)
    return list(zip(program_ids, link_ids, strict=True))


def probe_tcx() -> bool:
    """Whether the kernel knows tcx: a query of the loopback device is answered."""
    try:
        query_tcx(1, 46, "lo")
    except KernelError as error:
        # Before 6.6 the attach type is unknown (EINVAL). Without the right to ask: not known.
        return error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
    return True
