"""How ids, epochs and durations are written for people. One form each, used everywhere."""

from __future__ import annotations

__all__ = [
    "epoch_counter",
    "epoch_era",
    "epoch_node",
    "format_duration_s",
    "format_epoch",
    "make_epoch",
]


def make_epoch(era: int, counter: int, node_id: int) -> int:
    """The lease's fencing number: era (24 bits) << 40 | counter (32) << 8 | claiming node (8)."""
    assert 0 <= era < 1 << 24, era
    assert 0 <= counter < 1 << 32, counter
    assert 0 <= node_id < 1 << 8, node_id
    return era << 40 | counter << 8 | node_id


def epoch_era(epoch: int) -> int:
    return epoch >> 40


def epoch_counter(epoch: int) -> int:
    return epoch >> 8 & 0xFFFFFFFF


def epoch_node(epoch: int) -> int:
    return epoch & 0xFF


def format_epoch(epoch: int) -> str:
    """``era.counter.node``, e.g. ``3.17.1``; ``-`` for 0 (no epoch yet)."""
    if epoch == 0:
        return "-"
    return f"{epoch_era(epoch)}.{epoch_counter(epoch)}.{epoch_node(epoch)}"


def format_duration_s(seconds: float | None) -> str:
    """``0.4 ms``, ``83 ms``, ``2.1 s``; ``-`` for None."""
    if seconds is None:
        return "-"
    if abs(seconds) < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s"
