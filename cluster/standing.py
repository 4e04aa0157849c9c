"""The file in which a node keeps what Raft agreed on last: `/var/lib/hafw/NODE/standing`.

raftd starts after leased, and may have no leader for a while: without the file a node in
maintenance would claim groups at every start of the machine. hafwd writes it, leased reads it.
A file that is missing or damaged means that everybody is online, in cluster.yaml's order: a wrong
rank costs a move, never a lease.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cluster.agreed import State
from hafw.instance import write_atomically
from hafw.messages import Standing

__all__ = ["read_standing", "standing_of", "write_standing"]

_BYTES_MAX = 4096


def standing_of(state: State) -> Standing:
    """What leased has to know of the agreed state. Names it does not have give no rank."""
    ids = {member.name: member.id for member in state.members}
    return Standing(
        orders={group.index: [ids[name] for name in group.ranked] for group in state.groups},
        last=sorted(m.id for m in state.members if m.state == "draining" or m.votes == "no"),
        out=sorted(m.id for m in state.members if m.state in ("maintenance", "left")),
        cleared={member.id: member.cleared for member in state.members if member.cleared},
    )


def read_standing(path: Path) -> Standing:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=Standing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Standing({}, [], [])


def write_standing(path: Path, standing: Standing) -> None:
    """Raises StateError."""
    write_atomically(path, msgspec.json.encode(standing) + b"\n", mode=0o600)
