"""Does this node set labels (`ct label`)? Shell, by a request socket.

Nothing tells it, and events carry labels only when they change. But only while some rule of the
namespace sets a label has a new entry room for any (nf_conntrack_labels.h, nf_ct_labels_ext_add):
so an entry with a label is made that no packet can meet, asked for, and deleted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from hafw.flow import AF_INET, IPPROTO_UDP, IPS_CONFIRMED, FlowEntry, FlowKey, Tuple, inverse
from sync.ctnetlink import build_create, build_delete
from sync.ctsocket import RequestSocket

__all__ = ["LabelWatch", "probe_labels"]

_LOCAL = bytes((127, 0, 0, 1))
_ORIG = Tuple(AF_INET, IPPROTO_UDP, _LOCAL, _LOCAL, 9, 9)
_PROBE = FlowEntry(
    FlowKey(0xFFFF, _ORIG), inverse(_ORIG), IPS_CONFIRMED, 1, labels=bytes([1]) + bytes(15)
)
"""To and from the discard port of the node itself, in the last zone."""
ASK_S = 10.0
"""Whoever listens to conntrack events hears each question."""


def probe_labels(requests: RequestSocket) -> bool | None:
    """None if the kernel does not say, because its table is full. Raises KernelError."""
    (code,) = requests.execute([build_create(_PROBE)])
    if code not in (0, errno.EEXIST):
        return None
    entry = requests.get(_PROBE.key)
    requests.execute([build_delete(_PROBE.key)])
    return None if entry is None else entry.labels is not None


class LabelWatch:
    """Asks at once, then now and then: rules come and go."""

    def __init__(self, probe: Callable[[], bool | None]) -> None:
        self._probe = probe
        self._ask_at = 0.0
        self._known = False

    def node_sets_any(self, *, now: float) -> bool:
        """As of `ASK_S` ago at most."""
        if now >= self._ask_at:
            self._ask_at = now + ASK_S
            found = self._probe()
            self._known = self._known if found is None else found
        return self._known
