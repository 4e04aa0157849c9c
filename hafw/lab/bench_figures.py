"""One measured figure, beside what it is to be compared with. Pure."""

from __future__ import annotations

import msgspec

__all__ = ["Figure", "beside"]


class Figure(msgspec.Struct, frozen=True):
    """`system`: what was measured. `floor`: the same of the bare loop or of what it is compared
    with, and `ratio` value / floor (for rates: ours / the other's). `aim`: what issue and design
    ask for, in words; nothing fails by it. `note`: what spoils the figure, if anything does."""

    name: str
    system: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None
    aim: str = ""
    note: str = ""


def beside(
    name: str, system: str, value: float, unit: str, floor: float, *, aim: str = "", note: str = ""
) -> Figure:
    """A figure with its ratio to `floor`."""
    ratio = value / floor if floor else None
    return Figure(name, system, value, unit, floor, ratio, aim, note)
