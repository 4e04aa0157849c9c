"""The gate's programs, run by a dumb interpreter and compared with the rule in words."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gate_program import (
    GATE_HANDOVER_MARK,
    GROUP_INDEX_MAX,
    MAP_BYTES,
    SLOT_BYTES,
    TCX_DROP,
    TCX_NEXT,
    Hook,
    program_bytes,
    program_name,
)

TIMES = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1, 1000])
)
_KTIME_GET_BOOT_NS = 125
_U64 = 2**64 - 1


@dataclass
class Machine:
    """Registers, a page and a packet's mark. Runs what the gate uses and no more."""

    now: int
    page: bytearray = field(default_factory=lambda: bytearray(MAP_BYTES))
    mark: int = 0

    def run(self, code: bytes) -> int:
        insns = list(struct.iter_unpack("=BBhi", code))
        registers: list[int | None] = [None] * 11
        registers[1] = -8  # The context: only its mark, at offset 8, exists here (address 0).
        at = 0
        for _ in range(len(insns)):
            opcode, both, offset, immediate = insns[at]
            dst, src = both & 15, both >> 4
            at += 1
            match opcode:
                case 0xB7:
                    registers[dst] = immediate & _U64
                case 0xBF:
                    registers[dst] = registers[src]
                case 0x18:
                    assert src == 2, "only addresses in a map's value"
                    registers[dst] = insns[at][3]
                    at += 1
                case 0x79:
                    registers[dst] = self.cell(self.value(registers, src) + offset)
                case 0x63:
                    assert self.value(registers, dst) + offset == 0, "only the mark"
                    self.mark = self.value(registers, src) & 0xFFFFFFFF
                case 0xDB:
                    place = self.value(registers, dst) + offset
                    total = self.cell(place) + self.value(registers, src) & _U64
                    struct.pack_into("=Q", self.page, place, total)
                case 0x3D:
                    if self.value(registers, dst) >= self.value(registers, src):
                        at += offset
                case 0xAD:
                    if self.value(registers, dst) < self.value(registers, src):
                        at += offset
                case 0x85:
                    assert immediate == _KTIME_GET_BOOT_NS
                    registers[0] = self.now
                    registers[1:6] = [None] * 5
                case 0x95:
                    result = self.value(registers, 0)
                    return result - 2**64 if result >> 63 else result
                case _:
                    raise AssertionError(f"opcode {opcode:#x}")
        raise AssertionError("no exit")

    @staticmethod
    def value(registers: list[int | None], index: int) -> int:
        value = registers[index]
        assert value is not None, f"r{index} is not set"
        return value

    def cell(self, place: int) -> int:
        assert place % 8 == 0
        value: int = struct.unpack_from("=Q", self.page, place)[0]
        return value

    def slot(self, group: int) -> list[int]:
        return list(struct.unpack_from("=5Q", self.page, group * SLOT_BYTES))


def machine(group: int, now: int, announce: int, accept: int) -> Machine:
    built = Machine(now)
    struct.pack_into("=QQ", built.page, group * SLOT_BYTES, announce, accept)
    return built


@given(st.integers(1, GROUP_INDEX_MAX), TIMES, TIMES, TIMES)
def test_a_frame_goes_out_only_before_announce(
    group: int, now: int, announce: int, accept: int
) -> None:
    gate = machine(group, now, announce, accept)
    verdict = gate.run(program_bytes(Hook.OUT, group, 3, always_pass=False))
    assert verdict == (TCX_NEXT if now < announce else TCX_DROP)
    assert gate.slot(group) == [announce, accept, 0, 0 if now < announce else 1, 0]
    assert gate.mark == 0


@given(st.integers(1, GROUP_INDEX_MAX), TIMES, TIMES, TIMES)
def test_a_frame_comes_in_only_before_accept_and_marked_without_announce(
    group: int, now: int, announce: int, accept: int
) -> None:
    gate = machine(group, now, announce, accept)
    verdict = gate.run(program_bytes(Hook.IN, group, 3, always_pass=False))
    handover = announce <= now < accept
    assert verdict == (TCX_NEXT if now < accept else TCX_DROP)
    assert gate.mark == (GATE_HANDOVER_MARK if handover else 0)
    assert gate.slot(group) == [announce, accept, 0 if now < accept else 1, 0, int(handover)]


@pytest.mark.parametrize("hook", list(Hook))
def test_nothing_outside_the_group_s_slot_changes(hook: Hook) -> None:
    gate = machine(5, 1000, 0, 0)
    gate.page[:64] = b"\xaa" * 64
    gate.page[6 * SLOT_BYTES :] = b"\xbb" * (MAP_BYTES - 6 * SLOT_BYTES)
    gate.run(program_bytes(hook, 5, 3, always_pass=False))
    assert gate.page[: 5 * SLOT_BYTES] == b"\xaa" * 64 + bytes(4 * SLOT_BYTES)
    assert set(gate.page[6 * SLOT_BYTES :]) == {0xBB}


@pytest.mark.parametrize("hook", list(Hook))
def test_the_drill_s_variant_passes_whatever_the_time(hook: Hook) -> None:
    gate = machine(1, _U64, 0, 0)
    assert gate.run(program_bytes(hook, 1, 3, always_pass=True)) == TCX_NEXT
    assert gate.slot(1) == [0, 0, 0, 0, 0]


def test_names_fit_the_kernel_and_tell_everything_apart() -> None:
    names = {
        program_name(hook, group, always_pass=always_pass)
        for hook in Hook
        for group in range(1, GROUP_INDEX_MAX + 1)
        for always_pass in (False, True)
    }
    assert len(names) == 2 * GROUP_INDEX_MAX * 2
    assert max(map(len, names)) <= 15  # BPF_OBJ_NAME_LEN with its zero.


@pytest.mark.parametrize("group", [0, GROUP_INDEX_MAX + 1])
def test_the_header_and_what_lies_behind_are_no_groups(group: int) -> None:
    with pytest.raises(AssertionError):
        program_bytes(Hook.IN, group, 3, always_pass=False)
