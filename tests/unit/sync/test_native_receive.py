"""The native receiving path does what the reference does: same requests, registry and counters."""

from __future__ import annotations

import pytest

from tests.unit.sync.receive_world import KEYS, Both, Script, step


def run(seed: int, steps: int, *, refuse: int = 0, special: bool = True) -> Both:
    both, script = Both.begin(refuse=refuse), Script(seed, special=special)
    for _ in range(steps):
        step(both, script)
        both.compare(KEYS)
    return both


@pytest.mark.parametrize("seed", range(12))
def test_any_course_of_things_ends_alike(seed: int) -> None:
    both = run(seed, 100)
    assert both.fast.receiver is not None
    # Otherwise it would compare the reference with itself.
    assert both.fast.receiver.taken > 50


@pytest.mark.parametrize("seed", range(6))
def test_what_the_kernel_refuses_is_dealt_with_alike(seed: int) -> None:
    both = run(seed, 60, refuse=5, special=False)
    assert both.fast.receiver is not None
    assert both.fast.receiver.taken > both.fast.taken * 3 // 4
    assert any(name.startswith("repair_") for name in both.fast.applier.counters)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_courses_end_alike(seed: int) -> None:
    assert run(seed, 600).fast.swept
    run(seed, 600, refuse=7, special=False)
