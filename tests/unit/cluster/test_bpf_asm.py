"""The assembler's bytes against the kernel's documentation (Documentation/bpf/standardization)."""

from __future__ import annotations

import struct

import pytest

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


def words(program: list[Insn | Label]) -> list[tuple[int, int, int, int, int]]:
    code = assemble(program)
    assert len(code) % 8 == 0
    return [
        (opcode, registers & 15, registers >> 4, offset, immediate)
        for opcode, registers, offset, immediate in struct.iter_unpack("=BBhi", code)
    ]


@pytest.mark.parametrize(
    ("insn", "expected"),
    [
        (mov_imm(0, -1), (0xB7, 0, 0, 0, -1)),
        (mov_reg(6, 1), (0xBF, 6, 1, 0, 0)),
        (load64(1, 7, 8), (0x79, 1, 7, 8, 0)),
        (store32(6, 8, 1), (0x63, 6, 1, 8, 0)),
        (atomic_add64(7, 16, 1), (0xDB, 7, 1, 16, 0)),
        (call(125), (0x85, 0, 0, 0, 125)),
        (exit_(), (0x95, 0, 0, 0, 0)),
    ],
)
def test_one_instruction(insn: Insn, expected: tuple[int, int, int, int, int]) -> None:
    assert words([insn]) == [expected]


def test_a_map_address_takes_two_instructions_fd_first_offset_second() -> None:
    assert words([*load_map_value(7, 5, 192)]) == [(0x18, 7, 2, 0, 5), (0, 0, 0, 0, 192)]


def test_a_jump_counts_from_the_next_instruction_and_labels_take_no_room() -> None:
    program: list[Insn | Label] = [
        jump_ge(0, 1, "end"),
        jump_lt(0, 1, "next"),
        Label("next"),
        *load_map_value(7, 5, 0),
        Label("end"),
        exit_(),
    ]
    assert [word[3] for word in words(program)] == [3, 0, 0, 0, 0]


def test_a_label_set_twice_or_behind_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="twice"):
        assemble([Label("a"), exit_(), Label("a")])
    with pytest.raises(AssertionError, match="backwards"):
        assemble([Label("a"), exit_(), jump_ge(0, 1, "a")])
    with pytest.raises(KeyError):
        assemble([jump_ge(0, 1, "nowhere")])
