"""Real syncds in namespaces of their own, two sync links, and a leased that the test plays.

    gw1, gw2 (, gw3) -- sync0, sync1 (, lan0) -- a switch namespace with a bridge for each

A segment is built where a test wants it (`lan`; its number is `LAN`). Flows are put into the
holder's table as a policy would have made them. The test says who holds the group and reads what
syncd tells leased. The flows and the gateways (`syncd_flows`, `syncd_gateway`) come with it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hafw.flow import FlowKey
from hafw.paths import NodePaths
from tests.integration.ct_spaces import batch, inside, run, strict
from tests.integration.syncd_flows import SERVER4, SERVER6, VIP4, VIP6, flow, mixed
from tests.integration.syncd_gateway import ROOT, Gateway, epoch, wait_for

__all__ = [
    "GATEWAY_RULES",
    "LAN",
    "LAN4",
    "LAN6",
    "ROOT",
    "SERVER4",
    "SERVER6",
    "VIP4",
    "VIP6",
    "Gateway",
    "World",
    "epoch",
    "flow",
    "mixed",
    "syncd_world",
    "wait_for",
    "write_key",
]

LAN = 2
"""Among the links of a world."""
LAN4, LAN6 = "192.0.2.{n}/24", "2001:db8:1::{n}/64"

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
