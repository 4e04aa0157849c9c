"""The registry against a dumb dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hafw.flow import FlowKey, mark_group
from sync.delta import Version
from sync.registry import Registry
from tests.unit.sync.sync_flows import tcp, udp


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.booleans())))
def test_counts_and_keys_by_group(steps: list[tuple[int, int, bool]]) -> None:
    registry = Registry()
    oracle: dict[FlowKey, int] = {}
    for port, group, remove in steps:
        entry = udp(port, group=group)
        if remove:
            record = registry.remove(entry.key)
            assert (record is None) == (entry.key not in oracle)
            oracle.pop(entry.key, None)
        else:
            registry.put(entry, 1, Version(1, 0))
            oracle[entry.key] = mark_group(entry.mark)
        assert len(registry) == len(oracle)
        for number in (1, 2, 3):
            wanted = {key for key, value in oracle.items() if value == number}
            assert registry.keys(number) == wanted
            assert registry.count(number) == len(wanted)


def test_equal_tcp_states_are_one_object() -> None:
    registry = Registry()
    one = registry.put(tcp(1), 1, Version(1, 0))
    other = registry.put(tcp(2), 2, Version(1, 0))
    assert one.tcp is other.tcp


def test_keys_are_a_copy() -> None:
    registry = Registry()
    registry.put(udp(1), 1, Version(1, 0))
    registry.keys(1).clear()
    assert registry.count(1) == 1
