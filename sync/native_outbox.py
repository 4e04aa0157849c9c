"""The sending end with the native codec: `sync.outbox.Outbox`, whose deltas one native object
seals, keeps and sends. Control datagrams are sealed by the same sealer, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from sync._codec import Sealer, Sender
from sync.ledger import Ledger
from sync.outbox import Outbox, deltas_room
from sync.ring import KeptDatagrams
from sync.wire import Seals

__all__ = ["NativeOutbox"]


class NativeOutbox(Outbox):
    """Everything this node says on the stream."""

    def __init__(
        self,
        new_sealer: Callable[[], Seals],
        to_all: Callable[[bytes], None],
        *,
        failed: Callable[[Sequence[tuple[int, int, int]]], None],
        ring_datagrams: int,
        peers: int,
        boot: int,
        first_said: Callable[[], int] = lambda: 0,
    ) -> None:
        """`failed` takes what could not be sent: place of the link in `Sender.aim`, errno and how
        many datagrams."""
        self.sender = Sender(ring_datagrams)
        self._failed = failed
        super().__init__(
            new_sealer,
            to_all,
            ring_datagrams=ring_datagrams,
            peers=peers,
            boot=boot,
            first_said=first_said,
        )

    def _begin_stream(self, published: int) -> tuple[KeptDatagrams, Ledger]:
        assert isinstance(self.sealer, Sealer)
        self.sender.begin(self.sealer, published)
        return self.sender, Ledger(self._ring_datagrams, published, self.sender)

    def put_encoded(self, epoch: int, deltas: bytes, count: int) -> None:
        self.sender.published = self._first_said()
        self.sender.put(epoch, deltas, count)

    def fit(self, datagram_bytes: int) -> None:
        super().fit(datagram_bytes)
        self.sender.room = deltas_room(datagram_bytes)

    def flush(self) -> None:
        self.sender.flush()
        self.note_failures()

    def note_failures(self) -> None:
        """After each native call that may have sent."""
        if self.sender.failed:
            self._failed(self.sender.take_failures())

    def tally(self) -> Counter[str]:
        for name, total in (
            ("datagrams_sent", self.sender.datagrams),
            ("bytes_sent", self.sender.bytes),
            ("deltas_sent", self.sender.deltas),
        ):
            if total:
                self.counters[name] = total
        return self.counters
