"""A BPF assembler for programs of some ten instructions. Pure.

One instruction is 8 bytes: ``u8 opcode; u8 dst | src << 4; s16 offset; s32 immediate``, in the
machine's byte order (linux/bpf.h, struct bpf_insn). A program is a list of instructions with
labels; `assemble` turns the labels into offsets. Registers: r0 result, r1..r5 arguments (lost in a
call), r6..r9 kept over a call.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = [
    "Insn",
    "Label",
    "assemble",
    "atomic_add64",
    "call",
    "exit_",
    "jump_ge",
    "jump_lt",
    "load64",
    "load_map_value",
    "mov_imm",
    "mov_reg",
    "store32",
]

_ATOMIC_ADD = 0x00
_PSEUDO_MAP_VALUE = 2


@dataclass(frozen=True, slots=True)
class Label:
    """A place a jump can go to; takes no room."""

    name: str


@dataclass(frozen=True, slots=True)
class Insn:
    """One instruction. `target` names the label of a jump."""

    opcode: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    immediate: int = 0
    target: str | None = None


def mov_imm(dst: int, immediate: int) -> Insn:
    """``dst = immediate``, sign-extended to 64 bits (BPF_ALU64 | BPF_MOV | BPF_K)."""
    return Insn(0xB7, dst=dst, immediate=immediate)


def mov_reg(dst: int, src: int) -> Insn:
    """``dst = src`` (BPF_ALU64 | BPF_MOV | BPF_X)."""
    return Insn(0xBF, dst=dst, src=src)


def load64(dst: int, src: int, offset: int) -> Insn:
    """``dst = *(u64 *)(src + offset)`` (BPF_LDX | BPF_MEM | BPF_DW)."""
    return Insn(0x79, dst=dst, src=src, offset=offset)


def store32(dst: int, offset: int, src: int) -> Insn:
    """``*(u32 *)(dst + offset) = src`` (BPF_STX | BPF_MEM | BPF_W)."""
    return Insn(0x63, dst=dst, src=src, offset=offset)


def atomic_add64(dst: int, offset: int, src: int) -> Insn:
    """``lock *(u64 *)(dst + offset) += src`` (BPF_STX | BPF_ATOMIC | BPF_DW, BPF_ADD)."""
    return Insn(0xDB, dst=dst, src=src, offset=offset, immediate=_ATOMIC_ADD)


def jump_ge(dst: int, src: int, target: str) -> Insn:
    """``if dst >= src goto target``, unsigned (BPF_JMP | BPF_JGE | BPF_X)."""
    return Insn(0x3D, dst=dst, src=src, target=target)


def jump_lt(dst: int, src: int, target: str) -> Insn:
    """``if dst < src goto target``, unsigned (BPF_JMP | BPF_JLT | BPF_X)."""
    return Insn(0xAD, dst=dst, src=src, target=target)


def call(function: int) -> Insn:
    """Call the kernel's function of that number (BPF_JMP | BPF_CALL)."""
    return Insn(0x85, immediate=function)


def exit_() -> Insn:
    """Return r0 (BPF_JMP | BPF_EXIT)."""
    return Insn(0x95)


def load_map_value(dst: int, map_fd: int, offset: int) -> list[Insn]:
    """``dst = address of byte `offset` in the array's first value``: two instructions.

    BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_VALUE; the kernel puts the address in. Only for
    an array of one entry (kernel/bpf/arraymap.c, array_map_direct_value_addr).
    """
    return [
        Insn(0x18, dst=dst, src=_PSEUDO_MAP_VALUE, immediate=map_fd),
        Insn(0x00, immediate=offset),
    ]


def assemble(program: list[Insn | Label]) -> bytes:
    """The program's bytes. Jump offsets count instructions from the one after the jump."""
    places: dict[str, int] = {}
    insns: list[Insn] = []
    for item in program:
        match item:
            case Label(name):
                assert name not in places, f"label {name} is set twice"
                places[name] = len(insns)
            case Insn():
                insns.append(item)
    out = bytearray()
    for place, insn in enumerate(insns):
        offset = insn.offset
        if insn.target is not None:
            offset = places[insn.target] - place - 1
            assert offset >= 0, f"jump to {insn.target} goes backwards"
        out += struct.pack("=BBhi", insn.opcode, insn.dst | insn.src << 4, offset, insn.immediate)
    return bytes(out)
