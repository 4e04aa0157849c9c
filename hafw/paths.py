"""Where a node keeps its files. The roots can be moved by environment for tests only.

====================== ======================================================================
/run/hafw/NODE          hafwd.sock leased.sock syncd.sock raftd.sock, *.pid and *.lock, *.log (lab)
/var/lib/hafw/NODE      era, voters, standing, raft/ (hafw-raftd's own user)
/etc/hafw/NODE          lease.key sync.key raft.key (mode 0600)
/sys/fs/bpf/hafw/NODE   gate, prog-*, link-*
====================== ======================================================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hafw.errors import RefusedError

__all__ = ["NodePaths"]


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The folders of one node. RefusedError if `node` cannot be a node's name (and so could lead
    out of these folders)."""

    node: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", self.node):
            raise RefusedError(
                f"{self.node!r} cannot be a node's name: a letter, then letters, digits and "
                "dashes, all lower case, at most 32 characters"
            )

    @property
    def run(self) -> Path:
        return Path(os.environ.get("HAFW_RUN_ROOT", "/run/hafw")) / self.node

    @property
    def lib(self) -> Path:
        return Path(os.environ.get("HAFW_LIB_ROOT", "/var/lib/hafw")) / self.node

    @property
    def etc(self) -> Path:
        return Path(os.environ.get("HAFW_ETC_ROOT", "/etc/hafw")) / self.node

    @property
    def bpf(self) -> Path:
        return Path(os.environ.get("HAFW_BPF_ROOT", "/sys/fs/bpf/hafw")) / self.node

    @property
    def hafwd_socket(self) -> Path:
        """ZeroMQ ipc ROUTER of hafwd (the API)."""
        return self.run / "hafwd.sock"

    @property
    def leased_socket(self) -> Path:
        """Unix datagram socket of hafw-leased; messages of `hafw.messages`."""
        return self.run / "leased.sock"

    @property
    def syncd_socket(self) -> Path:
        """Unix datagram socket of hafw-syncd; messages of `hafw.messages`."""
        return self.run / "syncd.sock"

    @property
    def raftd_socket(self) -> Path:
        """Unix sequential-packet socket of hafw-raftd; messages of `hafw.raft_messages`."""
        return self.run / "raftd.sock"

    @property
    def raft_folder(self) -> Path:
        """The journal, term, vote and dump of hafw-raftd."""
        return self.lib / "raft"

    @property
    def era(self) -> Path:
        return self.lib / "era"

    @property
    def standing(self) -> Path:
        """What Raft has agreed on last, for the next hafw-leased (`cluster.standing`)."""
        return self.lib / "standing"

    @property
    def voters(self) -> Path:
        """The voter set in force, and the next one (`cluster.voters_file`)."""
        return self.lib / "voters"

    @property
    def lease_key(self) -> Path:
        return self.etc / "lease.key"

    @property
    def sync_key(self) -> Path:
        return self.etc / "sync.key"

    @property
    def raft_key(self) -> Path:
        return self.etc / "raft.key"

    def pid(self, daemon: str) -> Path:
        return self.run / f"{daemon}.pid"

    def lock(self, daemon: str) -> Path:
        return self.run / f"{daemon}.lock"
