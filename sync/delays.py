"""How long deltas take from being sealed until they are applied here, by sender. Pure."""

from __future__ import annotations

from sync.ledger import DelayWindow

__all__ = ["Delays"]


class Delays:
    """Measured only where sender and receiver have the same clock (one kernel)."""

    def __init__(self) -> None:
        self._windows: dict[int, DelayWindow] = {}
        self._waiting: list[tuple[int, int]] = []

    def arrived(self, sender_id: int, sent_ns: int) -> None:
        """A datagram was delivered; 0 if it says no comparable time."""
        if sent_ns:
            self._waiting.append((sender_id, sent_ns))

    def applied(self, now_ns: int, *, now: float) -> None:
        """All that was delivered is in the kernel. `now_ns` is of the sender's clock."""
        for sender_id, sent_ns in self._waiting:
            window = self._windows.setdefault(sender_id, DelayWindow())
            window.add((now_ns - sent_ns) / 1e6, now)
        self._waiting.clear()

    def percentiles(self, sender_id: int, now: float) -> tuple[float | None, float | None]:
        """The median and the 99th of a hundred, in ms."""
        window = self._windows.get(sender_id)
        return (None, None) if window is None else window.percentiles(now)
