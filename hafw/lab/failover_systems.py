"""The systems whose failover is measured: hafw in two profiles and more, keepalived. Shell.

Each runs in the lab's network, one after the other, and is looked at alike: who holds the virtual
address, is it whole again, how often was it taken over. keepalived (Debian's, unpacked by `make
install` and not installed) as it does best:

- one VRRPv3 instance a segment, in one sync group, so that both sides move at once
- `use_vmac`, so that no host has to learn another MAC; adverts leave by the virtual MAC device, so
  that each of them shows the switch where it is
- priorities 254 and 253: the skew (RFC 9568, 6.1) is the shortest that two unequal ones can have
- five gratuitous ARPs at once at a takeover, `nopreempt`
- real-time priority 50, memory locked; `vrrp_rlimit_rttime` 1 s: with its default of 10 ms the
  kernel kills it on a busy machine
- on its nodes: SNAT to the address by one rule, `arp_ignore` 1, `rp_filter` 0

It brings no states of flows along, so only the UDP flow is measured, which any node takes up.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hafw.errors import RefusedError, StateError
from hafw.lab.bench_failover import PRIORITIES, SystemSpec
from hafw.lab.drills import lab_for_drills
from hafw.lab.faults import DRILL_GROUP, Sight, wait_until
from hafw.lab.inside import call_in
from hafw.lab.judges import open_spans
from hafw.lab.lab import Lab
from hafw.lab.probe_judges import GateJudge
from hafw.lab.probe_loop import now_ns
from hafw.lab.ready import not_ready
from hafw.lab.topology import namespace_of

__all__ = [
    "Cluster",
    "Verdict",
    "count_masters",
    "find_keepalived",
    "keepalived_config",
    "running",
]

Say = Callable[[str], None]
READY_BOUND_S = 30.0
LAN_VIP, WAN_VIP = "192.0.2.254", "198.51.100.254"
STOP_S = 5.0
SETTLED_NS = 50_000_000
CONFIG = """
global_defs {{
  router_id {node}
  vrrp_version 3
  vrrp_rt_priority 50
  vrrp_rlimit_rttime 1000000
  vrrp_no_swap
  vrrp_garp_master_repeat 5
}}
vrrp_sync_group main {{
  group {{
    lan
    wan
  }}
}}
{instances}"""
INSTANCE = """vrrp_instance {segment} {{
  state BACKUP
  nopreempt
  interface {segment}0
  use_vmac vrrp-{segment}
  virtual_router_id 1
  priority {priority}
  advert_int {advert_s:g}
  virtual_ipaddress {{
    {vip}/32
  }}
}}
"""
SNAT = """table ip keepalived_nat {{
  chain out {{
    type nat hook postrouting priority srcnat
    oifname "wan0" ip saddr 192.0.2.0/24 snat to {vip}
  }}
}}
"""
SYSCTLS = {
    "ip_forward": 1,
    "conf/all/rp_filter": 0,
    "conf/default/rp_filter": 0,
    "conf/all/arp_ignore": 1,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the system's own judge found since the last call; keepalived has none, so its words
    are empty. `takeovers`: a node became ACTIVE that was not, or was so no more."""

    takeovers: int
    dual_ms: float = 0.0
    possible_ms: float = 0.0
    problem: str = ""


class Cluster(Protocol):
    """One system that runs in the lab."""

    lab: Lab
    kinds: frozenset[str]
    """Probes whose flows must live."""

    def holders(self) -> list[str]:
        """Gateways that hold the virtual address now."""

    def missing(self) -> str:
        """Why the next fault would be a second one; empty if everything is whole."""

    def verdict(self) -> Verdict: ...


class Hafw:
    """hafw's daemons."""

    kinds = frozenset({"snat udp", "snat tcp-echo"})

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._sight = Sight(lab)
        self._judge = GateJudge(lab.config_file, DRILL_GROUP)

    def close(self) -> None:
        self._judge.close()

    def holders(self) -> list[str]:
        return self._sight.open_gateways()

    def missing(self) -> str:
        found = not_ready(self.lab.config, with_sync=True) or self._sight.mute_voters()
        return "; ".join(found)

    def verdict(self) -> Verdict:
        record = self._judge.take()
        gates = record.verdict(())
        lax = [r for r in self._sight.strict("now") if r.tcp_loose or r.tcp_be_liberal]
        spans = [
            open_spans(record.changes(node), record.deadlines.end_ns, "announce")[1]
            for node in self.lab.gateways
        ]
        return Verdict(
            # One span is the holder's from the beginning.
            takeovers=max(sum(map(len, spans)) - 1, 0),
            dual_ms=gates.dual_ms,
            possible_ms=gates.possible_ms,
            problem=gates.problem or ("TCP is not strict" if lax else ""),
        )


class Keepalived:
    """Two keepalived, on gw1 and gw2."""

    kinds = frozenset({"snat udp"})

    def __init__(self, lab: Lab, advert_ms: float, program: Path, folder: Path) -> None:
        self.lab = lab
        self._advert_s = advert_ms / 1000
        self._program = program
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._since_ns = now_ns()
        self._last: list[str] = []
        self._masters = 0

    def start(self) -> None:
        """Until one of them is MASTER. Raises StateError."""
        for node, priority in zip(self.lab.gateways, PRIORITIES, strict=True):
            call_in(namespace_of(node), _make_router)
            _run([*self.lab.nsenter(node), "nft", "-f", "-"], SNAT.format(vip=WAN_VIP))
            file = self._folder / f"{node}.conf"
            file.write_text(keepalived_config(node, priority, self._advert_s))
            pids = [f"--{kind}={self._folder}/{node}.{kind}" for kind in ("pid", "vrrp_pid")]
            words = ["--dont-fork", "--log-console", "--log-detail", "--vrrp", *pids]
            with self._log(node).open("wb") as log:
                self._daemons.append(
                    self.lab.spawn(
                        node, [str(self._program), *words, f"--use-file={file}"],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        env={**os.environ, "LD_LIBRARY_PATH": _libraries(self._program)},
                    )
                )  # fmt: skip
        if not wait_until(READY_BOUND_S, lambda: not self.missing(), poll_s=0.05):
            raise StateError(f"keepalived did not come up: {self.missing()}")
        self.verdict()

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def holders(self) -> list[str]:
        return [node for node in self.lab.gateways if call_in(namespace_of(node), _has_lan_vip)]

    def missing(self) -> str:
        """One holder, and the same for a moment: it is an advert that makes the other one yield,
        so from then on its count runs."""
        if dead := [d.pid for d in self._daemons if d.poll() is not None]:
            tails = [self._log(node).read_text()[-200:] for node in self.lab.gateways]
            words = " ".join(" ".join(tails).split())
            raise StateError(f"{len(dead)} of 2 keepalived ended: {words}")
        found = self.holders()
        if found != self._last or len(found) != 1:
            self._last = found
            self._since_ns = now_ns()
        if len(found) != 1:
            return f"the address is on {' and '.join(found) or 'no node'}"
        quiet = now_ns() - self._since_ns > SETTLED_NS
        return "" if quiet else f"{found[0]} has only just become MASTER"

    def verdict(self) -> Verdict:
        count = sum(count_masters(self._log(node).read_text()) for node in self.lab.gateways)
        new, self._masters = count - self._masters, count
        return Verdict(takeovers=new)

    def _log(self, node: str) -> Path:
        return self._folder / f"{node}.log"


@contextmanager
def running(spec: SystemSpec, say: Say) -> Iterator[Cluster]:
    """The system in a lab of its own, which goes with it. Raises HafwError; RefusedError if a lab
    is up."""
    lab = Lab()
    if lab.exists():
        raise RefusedError(
            "a lab is up already, and each system is measured in one of its own; "
            "nothing was changed: `hafwctl lab down` first"
        )
    if spec.timers is not None:
        heartbeat_ms, lease_ms = spec.timers
        with lab_for_drills(lab, say, heartbeat_ms=heartbeat_ms, lease_ms=lease_ms):
            hafw = Hafw(lab)
            try:
                yield hafw
            finally:
                hafw.close()
        return
    assert spec.advert_ms is not None
    program = find_keepalived()
    say("building the network of the lab")
    lab.up(bare=True)
    try:
        with tempfile.TemporaryDirectory(prefix="hafw-keepalived-") as folder:
            pair = Keepalived(lab, spec.advert_ms, program, Path(folder))
            try:
                pair.start()
                yield pair
            finally:
                pair.close()
    finally:
        lab.heal_all()
        lab.down()
        lab.close()


def keepalived_config(node: str, priority: int, advert_s: float) -> str:
    """keepalived.conf of one node."""
    instances = "".join(
        INSTANCE.format(segment=segment, priority=priority, advert_s=advert_s, vip=vip)
        for segment, vip in (("lan", LAN_VIP), ("wan", WAN_VIP))
    )
    return CONFIG.format(node=node, instances=instances)


def count_masters(log: str) -> int:
    """How often the LAN's instance became MASTER, by keepalived's log."""
    return len(re.findall(r"\(lan\) Entering MASTER STATE", log))


def find_keepalived() -> Path:
    """The program that `make install` unpacked beside this Python, or an installed one. Raises
    StateError."""
    unpacked = Path(sys.prefix) / "keepalived/usr/sbin/keepalived"
    if unpacked.exists():
        return unpacked
    installed = shutil.which("keepalived", path="/usr/sbin:/usr/local/sbin")
    if installed is None:
        raise StateError("keepalived is not there to compare with: make install, or leave it out")
    return Path(installed)


def _libraries(program: Path) -> str:
    """Folders of what was unpacked beside it; none for an installed one."""
    root = program.parents[2]
    return ":".join(map(str, sorted(root.glob("**/*-linux-gnu")))) if root != Path("/") else ""


def _make_router() -> None:
    for key, value in SYSCTLS.items():
        Path("/proc/sys/net/ipv4", key).write_text(str(value))


def _has_lan_vip() -> bool:
    """Only a local address can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((LAN_VIP, 0))
        except OSError:
            return False
    return True


def _run(argv: list[str], text: str) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StateError(f"{argv[-3]}: {done.stderr.strip()}")
