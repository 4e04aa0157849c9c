"""Real syncds in namespaces of their own, two sync links, and a leased that the test plays.

    gw1, gw2 (, gw3) -- sync0, sync1 (, lan0) -- a switch namespace with a bridge for each

A segment is built where a test wants it (`lan`; its number is `LAN`). Flows are put into the
holder's table as a policy would have made them. The test says who holds the group and reads what
syncd tells leased.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from signal import SIGTERM
from typing import Any

from hafw.flow import (
    AF_INET,
    AF_INET6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    FlowEntry,
    FlowKey,
    TcpState,
    Tuple,
    hafw_mark,
    inverse,
)
from hafw.human import make_epoch
from hafw.kernel.netns import entered
from hafw.messages import (
    DATAGRAM_BYTES_MAX,
    NewEpochRequest,
    PositionReply,
    PositionRequest,
    RoleChange,
    StatusRequest,
    SyncBeacon,
    SyncdStatus,
    decode_leased,
    decode_syncd,
    encode,
)
from hafw.paths import NodePaths
from sync.ctnetlink import build_create, build_delete, build_update
from sync.ctsocket import RequestSocket
from tests.integration.ct_spaces import batch, inside, run, strict

_numbers = itertools.count()
ROOT = Path(__file__).resolve().parents[2]
CREATED = 0x0E  # CONFIRMED | ASSURED | SEEN_REPLY
VIP4, VIP6 = ip_address("198.51.100.254").packed, ip_address("2001:db8:2::fe").packed
SERVER4, SERVER6 = ip_address("198.51.100.10").packed, ip_address("2001:db8:2::10").packed
LAN = 2
"""Among the links of a world."""
LAN4, LAN6 = "192.0.2.{n}/24", "2001:db8:1::{n}/64"
ESTABLISHED = TcpState(3, 0x23, 0x23, 7, 7)

CONFIG = """
name: syncd-test
nodes:
{nodes}
groups:
  main:
    index: 1
    vrid: 1
    order: [{order}]
    vips: {{{vip}wan: [198.51.100.254]}}
sync: {{{sync}}}
"""
NODE = """  gw{n}:
    id: {n}
    segments:
      lan: {{device: lan0, addresses: [{lan}]}}
      wan: {{device: wan0, addresses: [198.51.100.{n}/24]}}
    links:
      sync0: {{device: sync0, address: 203.0.113.{n}/25}}
      sync1: {{device: sync1, address: 203.0.113.{m}/25}}
"""

# A nat chain keeps the translation hooks there; cluster traffic is not tracked.
GATEWAY_RULES = """
table inet gateway {
  chain translate { type nat hook postrouting priority srcnat; }
  chain from_peers { type filter hook prerouting priority raw; iifname "sync*" notrack
    iifname "lan*" notrack; }
  chain to_peers { type filter hook output priority raw; notrack; }
}
"""


def epoch(counter: int, node_id: int) -> int:
    return make_epoch(1, counter, node_id)


def wait_for(
    what: str | Callable[[], str], check: Callable[[], Any], timeout_s: float = 10.0
) -> Any:
    """The first true value of `check`."""
    until = time.monotonic() + timeout_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > until:
            text = what() if callable(what) else what
            raise AssertionError(f"not within {timeout_s} s: {text}")
        time.sleep(0.01)


def flow(
    number: int,
    *,
    v6: bool = False,
    proto: int = IPPROTO_TCP,
    owner: int = 1,
    dnat: bool = False,
    group: int = 1,
) -> FlowEntry:
    """Flow `number`: SNAT to the VIP, or DNAT from the VIP to a host inside."""
    host = ip_address(f"2001:db8:1::{number >> 14:x}" if v6 else f"192.0.2.{10 + (number >> 14)}")
    port = 20_000 + (number & 0x3FFF)
    family, vip = (AF_INET6, VIP6) if v6 else (AF_INET, VIP4)
    server = SERVER6 if v6 else SERVER4
    if dnat:
        orig = Tuple(family, proto, server, vip, port, 8080 + (number >> 14))
        reply = replace(inverse(orig), src=host.packed)
    else:
        orig = Tuple(family, proto, host.packed, server, port, 80 + (number >> 14))
        reply = replace(inverse(orig), dst=vip, dport=30_000 + (number & 0x3FFF))
    tcp = ESTABLISHED if proto == IPPROTO_TCP else None
    mark = hafw_mark(group, owner, owner) | (number & 0xFF)
    return FlowEntry(FlowKey(0, orig), reply, CREATED, 600, mark, tcp)


def mixed(count: int, *, owner: int = 1, first: int = 0) -> list[FlowEntry]:
    """Flows of every kind: TCP and UDP, SNAT and DNAT, IPv4 and IPv6."""
    return [
        flow(
            number,
            v6=bool(number & 1),
            proto=IPPROTO_UDP if number & 2 else IPPROTO_TCP,
            dnat=bool(number & 4),
            owner=owner,
        )
        for number in range(first, first + count)
    ]


class Gateway:
    """One node: its namespace, its syncd, and the leased that the test plays for it."""

    def __init__(self, number: int, space: str, config: Path, environment: dict[str, str]) -> None:
        self.number = number
        self.name = f"gw{number}"
        self.space = space
        self.paths = NodePaths(self.name)
        self._config = config
        self.environment = environment
        self.program = "sync.daemon"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.paths.run / "syncd.log"
        self.role: RoleChange | None = None
        self.beacons: list[SyncBeacon] = []
        self.heard_at: list[float] = []
        self.positions: list[PositionReply] = []
        self.new_epochs: list[NewEpochRequest] = []
        self.on_new_epoch: Callable[[NewEpochRequest], None] | None = None
        self._leased = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._leased.bind(str(self.paths.leased_socket))
        self._leased.settimeout(0.05)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play_leased, daemon=True)
        self._thread.start()
        with entered(space):
            self.kernel = RequestSocket()

    # -- the process

    def start(self) -> None:
        self.launch()
        self.wait_answers()

    def wait_answers(self) -> None:
        wait_for(f"{self.name} answers", lambda: self.status(0.2))

    def launch(self) -> None:
        argv = ["nsenter", f"--net=/run/netns/{self.space}", sys.executable, "-m", self.program]
        argv += ["--node", self.name, "--config", str(self._config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, cwd=ROOT, env=self.environment, stderr=log, stdout=log
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(10)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        self._ending.set()
        self._thread.join(5)
        self._leased.close()
        self.kernel.close()

    # -- leased

    def _play_leased(self) -> None:
        next_at = 0.0
        while not self._ending.is_set():
            if time.monotonic() >= next_at:
                next_at = time.monotonic() + 0.1
                self._say_role()
            try:
                message = decode_leased(self._leased.recv(DATAGRAM_BYTES_MAX))
            except TimeoutError:
                continue
            match message:
                case SyncBeacon():
                    self.beacons = [*self.beacons[-999:], message]
                    self.heard_at.append(time.monotonic())
                case PositionReply():
                    self.positions.append(message)
                case NewEpochRequest():
                    self.new_epochs.append(message)
                    if self.on_new_epoch is not None:
                        self.on_new_epoch(message)
                case _:
                    raise AssertionError(message)

    def say(self, role: RoleChange | None) -> None:
        self.role = role
        self._say_role()

    def _say_role(self) -> None:
        if self.role is not None:
            self._send(self.role)

    def _send(self, message: RoleChange | PositionRequest) -> None:
        with suppress(OSError):
            self._leased.sendto(encode(message), str(self.paths.syncd_socket))

    def hold(self, counter: int, *, contiguous: bool = False) -> None:
        number = epoch(counter, self.number)
        self.say(RoleChange(1, True, number, self.number, contiguous))

    def follow(self, counter: int, holder: int, *, lives: bool = True) -> None:
        number = epoch(counter, holder)
        self.say(RoleChange(1, False, number, holder if lives else 0, False))

    def ask_position(self) -> PositionReply:
        assert self.role is not None
        before = len(self.positions)
        self._send(PositionRequest(1, self.role.epoch))
        wait_for("a position", lambda: len(self.positions) > before, 2)
        return self.positions[-1]

    @property
    def reason(self) -> str:
        """Why syncd says it is not synced; empty if it is, or says nothing yet."""
        return self.beacons[-1].reasons.get(1, "") if self.beacons else "no beacon yet"

    def wait_synced(self, timeout_s: float = 15.0) -> None:
        self.beacons = []
        wait_for(
            lambda: f"{self.name} synced (last: {self.reason}); {self.status()}",
            lambda: self.beacons and self.beacons[-1].synced.get(1),
            timeout_s,
        )

    def wait_reason(self, part: str, timeout_s: float = 10.0) -> None:
        wait_for(
            lambda: f"{self.name}: {part} (last: {self.reason})",
            lambda: part in self.reason,
            timeout_s,
        )

    def status(self, timeout_s: float = 2.0) -> SyncdStatus | None:
        address = self.paths.run / f"t{next(_numbers)}"  # A path of at most 107.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(address))
            sock.settimeout(timeout_s)
            try:
                sock.sendto(encode(StatusRequest()), str(self.paths.syncd_socket))
                message = decode_syncd(sock.recv(DATAGRAM_BYTES_MAX))
            except (TimeoutError, OSError):
                return None
            finally:
                address.unlink()
        assert isinstance(message, SyncdStatus)
        return message

    def counter(self, name: str) -> int:
        status = self.status()
        assert status is not None
        return status.counters.get(name, 0)

    # -- the kernel

    def put(self, entries: list[FlowEntry]) -> None:
        """As if packets had made them: by a socket that is not syncd's."""
        codes = self.kernel.execute([build_create(entry, pristine=False) for entry in entries])
        assert not any(codes), codes

    def change(self, entry: FlowEntry) -> None:
        message = build_update(
            entry.key, status=entry.status, timeout_s=entry.timeout_s, tcp=entry.tcp
        )
        assert self.kernel.execute([message]) == [0]

    def delete(self, entries: list[FlowEntry]) -> None:
        codes = self.kernel.execute([build_delete(entry.key) for entry in entries])
        assert not any(codes), codes

    def table(self) -> dict[FlowKey, FlowEntry]:
        return {entry.key: entry for chunk in self.kernel.dump() for entry in chunk}

    def listed(self) -> set[str]:
        """conntrack(8)'s view, without what may differ between owner and replica."""
        lines = set()
        for family in ("ipv4", "ipv6"):
            text = inside(self.space, "conntrack", "-L", "-f", family, "-o", "extended")
            for line in text.splitlines():
                words = line.split()
                if words:
                    own = ("mark=", "delta-time=")
                    kept = [word for word in words[5:] if not word.startswith(own)]
                    lines.add(" ".join([*words[:4], *kept]))
        return lines

    def flush(self) -> None:
        inside(self.space, "conntrack", "-F")


class World:
    """The cluster under test."""

    def __init__(self, gateways: list[Gateway], switch: str, config: Path) -> None:
        self.gateways = gateways
        self.switch = switch
        self.config = config

    def __getitem__(self, number: int) -> Gateway:
        return self.gateways[number - 1]

    def start(self) -> None:
        for gateway in self.gateways:
            gateway.launch()
        for gateway in self.gateways:
            gateway.wait_answers()

    def lead(self, number: int, counter: int, *, contiguous: bool = False) -> None:
        """`number` holds the group under a new epoch and all know it."""
        for gateway in self.gateways:
            if gateway.number == number:
                gateway.hold(counter, contiguous=contiguous)
            else:
                gateway.follow(counter, number)

    def wait_equal(self, one: int, other: int, timeout_s: float = 10.0) -> None:
        """The tables hold the same flows with the same translation, status and TCP state."""

        def view(gateway: Gateway) -> dict[FlowKey, object]:
            return {
                key: (e.reply, e.status & 0x3F, e.tcp.state if e.tcp else None, e.mark & 0xFFFF)
                for key, e in gateway.table().items()
            }

        def equal() -> bool:
            return view(self[one]) == view(self[other])

        try:
            wait_for(f"equal tables of gw{one} and gw{other}", equal, timeout_s)
        except AssertionError:
            a, b = view(self[one]), view(self[other])
            only_a, only_b = sorted(map(str, a.keys() - b)), sorted(map(str, b.keys() - a))
            differ = [(str(k), a[k], b[k]) for k in a.keys() & b.keys() if a[k] != b[k]]
            raise AssertionError(
                f"only gw{one}: {len(only_a)} {only_a[:3]}; only gw{other}: {len(only_b)} "
                f"{only_b[:3]}; differ: {len(differ)} {differ[:3]}; {self[other].status()}"
            ) from None

    def lose(self, link: int, percent: int) -> None:
        """Drop this share of the link's frames between the switch's ports."""
        self._rule(link, f"numgen random mod 100 < {percent}")

    def cut(self, link: int) -> None:
        self._rule(link, "")

    def drop(self, link: int, which: str) -> None:
        """Drop the link's frames that an nft expression chooses."""
        self._rule(link, which)

    def _rule(self, link: int, which: str) -> None:
        rules = f"""
            table bridge lossy{link} {{
              chain forward {{
                type filter hook forward priority 0;
                iifname "l{link}p*" {which} drop
              }}
            }}
        """
        inside(self.switch, "nft", "-f", "-", stdin=rules)

    def heal(self, link: int) -> None:
        inside(self.switch, "nft", "delete", "table", "bridge", f"lossy{link}")


@contextmanager
def syncd_world(
    folder: Path, count: int = 2, *, sync: str = "", lan: str = "", wan: bool = False
) -> Iterator[World]:
    """`count` gateways, their syncds not started yet. `lan`: build that segment, with these
    addresses (`LAN4` or `LAN6`); `wan`: the other one too."""
    prefix = f"hafw-t-sync-{os.getpid()}"
    switch = f"{prefix}-sw"
    names = [f"{prefix}-gw{number}" for number in range(1, count + 1)]
    config = folder / "cluster.yaml"
    nodes = "".join(
        NODE.format(n=n, m=128 + n, lan=(lan or LAN4).format(n=n)) for n in range(1, count + 1)
    )
    order = ", ".join(f"gw{n}" for n in range(1, count + 1))
    vip = "" if lan == LAN6 else "lan: [192.0.2.254], "
    config.write_text(CONFIG.format(nodes=nodes, order=order, sync=sync, vip=vip))
    roots = {"HAFW_RUN_ROOT": str(folder / "r"), "HAFW_ETC_ROOT": str(folder / "e")}
    saved = {name: os.environ.get(name) for name in roots}
    os.environ.update(roots)
    gateways: list[Gateway] = []
    try:
        _build_network(switch, names, lan, wan)
        key = os.urandom(32)
        for number, name in enumerate(names, 1):
            paths = NodePaths(f"gw{number}")
            paths.run.mkdir(parents=True)
            write_key(paths, key)
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
            gateways.append(Gateway(number, name, config, environment))
        yield World(gateways, switch, config)
        for gateway in gateways:
            text = gateway.log.read_text() if gateway.log.exists() else ""
            assert "Traceback" not in text, f"{gateway.name}: {text}"
    finally:
        for gateway in gateways:
            gateway.close()
        for name in [*names, switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def write_key(paths: NodePaths, key: bytes) -> None:
    paths.etc.mkdir(parents=True, exist_ok=True)
    paths.etc.chmod(0o700)
    with suppress(FileNotFoundError):
        paths.sync_key.unlink()
    descriptor = os.open(paths.sync_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)


def _build_network(switch: str, names: list[str], lan: str, wan: bool) -> None:
    bridges, ports = [], []
    devices = ("sync0", "sync1", *(("lan0",) if lan else ()), *(("wan0",) if wan else ()))
    for link, device in enumerate(devices):
        bridges.append(f"link add br{link} type bridge mcast_snooping 0")
        bridges.append(f"link set br{link} up")
        for number, name in enumerate(names, 1):
            port = f"l{link}p{number}"
            ports.append(f"link add {port} type veth peer {device} netns {name}")
            ports.append(f"link set {port} master br{link} up")
    run("ip", "netns", "add", switch)
    for name in names:
        run("ip", "netns", "add", name)
    batch(switch, *bridges, *ports)
    for number, name in enumerate(names, 1):
        strict(name)
        inside(name, "nft", "-f", "-", stdin=GATEWAY_RULES)
        plan = ["link set lo up"]
        for link in (0, 1):
            plan.append(f"address add 203.0.113.{128 * link + number}/25 dev sync{link}")
            plan.append(f"link set sync{link} up")
        if lan:
            plan += [f"address add {lan.format(n=number)} dev lan0 nodad", "link set lan0 up"]
        if wan:
            plan += [f"address add 198.51.100.{number}/24 dev wan0", "link set wan0 up"]
        batch(name, *plan)
