"""The gate: what its kernel map holds and the two BPF programs that read it. Pure.

Theory of operation. Every virtual MAC device has one program on tc ingress and one on tc egress.
Both compare the kernel's CLOCK_BOOTTIME with a deadline of the device's group, an absolute time,
in a one-page array that the lease loop has mapped. A renewal is one 8-byte store; a deadline that
passes shuts the gate with nobody's help; a store that comes late stores a time that has passed.

The map is an ARRAY of one value of `MAP_BYTES`, in the machine's byte order:

====== ============= =====================================================================
offset field         meaning
====== ============= =====================================================================
0      u64 magic     `MAGIC`, "hafwgate"
8      u64 version   `VERSION`
16     u64 flags     bit 0 `FLAG_ALWAYS_PASS`: a drill attached programs that never drop
g*64   u64 announce  group g (1..15): egress is open before this, CLOCK_BOOTTIME ns; 0 = shut
+8     u64 accept    ingress is open before this
+16    u64 drops in  frames dropped at ingress since the map was made
+24    u64 drops out frames dropped at egress
+32    u64 handover  frames that came in while accept was open and announce was not
+40    24 bytes      zero
====== ============= =====================================================================

Invariant: a frame goes out only if ``now < announce``; it comes in only if ``now < accept``. What
comes in while announce is shut (a planned hand-over) carries `GATE_HANDOVER_MARK`, and a rule in
the cluster table drops new connections that carry it, so that two nodes never allocate NAT ports
at once.
"""

from __future__ import annotations

from enum import Enum

from cluster.bpf_asm import (
    Insn,
    Label,
    assemble,
    atomic_add64,
    call,
    exit_,
    jump_ge,
    jump_lt,
    load64,
    load_map_value,
    mov_imm,
    mov_reg,
    store32,
)

__all__ = [
    "ACCEPT",
    "ANNOUNCE",
    "DROPPED_IN",
    "DROPPED_OUT",
    "FLAGS",
    "FLAG_ALWAYS_PASS",
    "GATE_HANDOVER_MARK",
    "GROUP_INDEX_MAX",
    "HANDOVER",
    "MAGIC",
    "MAP_BYTES",
    "SLOT_BYTES",
    "TCX_DROP",
    "TCX_NEXT",
    "VERSION",
    "Hook",
    "program_bytes",
    "program_name",
]

GATE_HANDOVER_MARK = 0x4841
"""skb mark ("HA") of what comes in while accept is open and announce is not."""
MAGIC = 0x6574_6167_7766_6168
VERSION = 1
FLAG_ALWAYS_PASS = 1
MAP_BYTES = 4096
SLOT_BYTES = 64
GROUP_INDEX_MAX = 15

FLAGS = 16
ANNOUNCE = 0
ACCEPT = 8
DROPPED_IN = 16
DROPPED_OUT = 24
HANDOVER = 32

TCX_NEXT = -1
TCX_DROP = 2
_KTIME_GET_BOOT_NS = 125
_SKB_MARK = 8  # struct __sk_buff: len, pkt_type, mark.

_R0, _R1, _R6, _R7 = 0, 1, 6, 7


class Hook(Enum):
    """Where a program sits; the value is the bpf attach type (linux/bpf.h, since 6.6)."""

    IN = 46
    OUT = 47

    @property
    def word(self) -> str:
        return self.name.lower()


def program_name(hook: Hook, group_index: int, *, always_pass: bool) -> str:
    """Name the kernel shows for the program, e.g. ``hafw_gate_in_1``; at most 15 characters."""
    kind = "pass" if always_pass else "gate"
    return f"hafw_{kind}_{hook.word}_{group_index:x}"


def program_bytes(hook: Hook, group_index: int, map_fd: int, *, always_pass: bool) -> bytes:
    """The program for one hook of the devices of one group."""
    assert 1 <= group_index <= GROUP_INDEX_MAX, group_index
    slot = load_map_value(_R7, map_fd, group_index * SLOT_BYTES)
    if always_pass:
        # Refers to the map all the same, so that it is recognised as ours.
        return assemble([*slot, mov_imm(_R0, TCX_NEXT), exit_()])
    match hook:
        case Hook.IN:
            return assemble(
                [
                    mov_reg(_R6, _R1),
                    call(_KTIME_GET_BOOT_NS),
                    *slot,
                    load64(_R1, _R7, ACCEPT),
                    jump_ge(_R0, _R1, "drop"),
                    load64(_R1, _R7, ANNOUNCE),
                    jump_lt(_R0, _R1, "pass"),
                    mov_imm(_R1, GATE_HANDOVER_MARK),
                    store32(_R6, _SKB_MARK, _R1),
                    mov_imm(_R1, 1),
                    atomic_add64(_R7, HANDOVER, _R1),
                    Label("pass"),
                    mov_imm(_R0, TCX_NEXT),
                    exit_(),
                    *_drop(DROPPED_IN),
                ]
            )
        case Hook.OUT:
            return assemble(
                [
                    call(_KTIME_GET_BOOT_NS),
                    *slot,
                    load64(_R1, _R7, ANNOUNCE),
                    jump_ge(_R0, _R1, "drop"),
                    mov_imm(_R0, TCX_NEXT),
                    exit_(),
                    *_drop(DROPPED_OUT),
                ]
            )


def _drop(counter: int) -> list[Insn | Label]:
    return [
        Label("drop"),
        mov_imm(_R1, 1),
        atomic_add64(_R7, counter, _R1),
        mov_imm(_R0, TCX_DROP),
        exit_(),
    ]
