"""Whether the clock of the lease runs at its right rate. Pure.

The lease allows every clock a rate error of DRIFT. A time daemon that slews changes the rate of
CLOCK_BOOTTIME (chrony by up to 8.3 % unless told otherwise), never that of CLOCK_MONOTONIC_RAW.
Comparing the two over `SPAN_NS` shows it, well before the allowance is used up.
"""

from __future__ import annotations

from hafw.config.model import DRIFT

__all__ = ["RATE_ERROR_MAX", "SPAN_NS", "ClockRate"]

SPAN_NS = 10_000_000_000
RATE_ERROR_MAX = DRIFT / 2
_SLEPT = 0.2
"""No slew is as fast: the machine was suspended, which only CLOCK_BOOTTIME counts."""


class ClockRate:
    """Fed with readings of both clocks taken together, as often as one likes."""

    def __init__(self, boottime_ns: int, raw_ns: int) -> None:
        self._from = boottime_ns, raw_ns
        self._error = 0.0

    def observe(self, boottime_ns: int, raw_ns: int) -> None:
        """Judge a span once it is over."""
        boottime_from, raw_from = self._from
        if raw_ns - raw_from < SPAN_NS:
            return
        self._from = boottime_ns, raw_ns
        error = (boottime_ns - boottime_from) / (raw_ns - raw_from) - 1
        self._error = 0.0 if abs(error) > _SLEPT else error

    def alarms(self) -> list[str]:
        """A sentence if the last span was wrong by more than `RATE_ERROR_MAX`."""
        if abs(self._error) <= RATE_ERROR_MAX:
            return []
        return [
            f"the clock runs {abs(self._error):.1%} too {'fast' if self._error > 0 else 'slow'}, "
            f"leases allow {DRIFT:.0%}: limit the slew of the time daemon (chrony: maxslewrate "
            f"5000)"
        ]
