"""A syncd whose kernel takes no socket filter: what must be an alarm, and nothing worse."""

from __future__ import annotations

import errno

from hafw.errors import KernelError
from sync.ctsocket import EventSocket
from sync.daemon import main


def _refused(_: EventSocket, __: int) -> None:
    raise KernelError(errno.ENOPROTOOPT, "attaching a filter", "the conntrack event socket")


if __name__ == "__main__":
    EventSocket.attach_filter = _refused  # type: ignore[method-assign, assignment]
    main()
