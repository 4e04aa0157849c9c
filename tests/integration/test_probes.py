"""Probe agents between two namespaces joined by one cable: what they measure, what they catch."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hafw.errors import StateError
from hafw.lab.probe_agent import Answer, Request
from hafw.lab.probe_process import LineProcess
from hafw.lab.probe_record import lost_reason, outage_ns
from hafw.lab.probes import Addresses, Probe, ProbeSet, Snapshot, plan_probes

pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
]

PREFIX = f"hafw-t-drill-{os.getpid()}-"
INSIDE = (
    Addresses(4, "192.0.2.20", "198.51.100.10", "192.0.2.20", "192.0.2.20"),
    Addresses(6, "2001:db8:1::20", "2001:db8:2::10", "2001:db8:1::20", "2001:db8:1::20"),
)
WAIT_S = 20.0


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, capture_output=True, timeout=10)


def spawn(host: str, argv: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{PREFIX}{host}", "--", *argv], **options
    )


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    client, server = f"{PREFIX}client", f"{PREFIX}server"
    try:
        for name in (client, server):
            run(f"ip netns add {name}")
            run(f"ip -n {name} link set lo up")
        run(f"ip link add c0 index 70 netns {client} type veth peer s0 index 71 netns {server}")
        for name, device, addresses, far in (
            (client, "c0", ("192.0.2.10/24", "192.0.2.20/24", "2001:db8:1::10/64",
                            "2001:db8:1::20/64"), ("198.51.100.0/24", "2001:db8:2::/64")),
            (server, "s0", ("198.51.100.10/24", "2001:db8:2::10/64"),
             ("192.0.2.0/24", "2001:db8:1::/64")),
        ):  # fmt: skip
            for address in addresses:
                run(f"ip -n {name} addr add {address} dev {device} nodad")
            run(f"ip -n {name} link set {device} up")
            for prefix in far:
                run(f"ip -n {name} route add {prefix} dev {device}")
        yield
    finally:
        for name in (client, server):
            if Path(f"/run/netns/{name}").exists():
                run(f"ip netns del {name}")


@pytest.fixture
def probes(cable: None) -> Iterator[ProbeSet]:
    probe_set = ProbeSet(spawn, INSIDE, plan_probes(INSIDE, octets_s=2_000_000))
    probe_set.start()
    yield probe_set
    probe_set.close()


def wait_for(probes: ProbeSet, what: str, claim: Callable[[Snapshot], bool]) -> Snapshot:
    deadline = time.monotonic() + WAIT_S
    while True:
        snapshot = probes.snapshot()
        if claim(snapshot):
            return snapshot
        assert time.monotonic() < deadline, f"{what}: {describe(snapshot)}"
        time.sleep(0.05)


def describe(snapshot: Snapshot) -> dict[int, tuple[str, int, int]]:
    return {f.flow: (f.state, f.exchanges, f.wrong) for f in snapshot.flows.values()}


def all_open(snapshot: Snapshot) -> bool:
    return all(flow.exchanges > 3 for flow in snapshot.flows.values())


def reasons(probes: ProbeSet, before: Snapshot, after: Snapshot) -> dict[str, str]:
    found = {}
    for probe in probes.probes:
        flow = probe.spec.flow
        found[f"{probe.name} v{probe.spec.family}"] = lost_reason(
            before.flows[flow], after.flows[flow], exchanges=probe.exchanges_min, bound_s=1
        )
    return found


def udp_v4(probes: ProbeSet) -> Probe:
    return next(p for p in probes.probes if p.name == "snat udp" and p.spec.family == 4)


def test_every_kind_of_flow_moves_checked_bytes(probes: ProbeSet) -> None:
    before = wait_for(probes, "flows open", all_open)
    time.sleep(1.2)
    probes.exchange()
    time.sleep(0.3)
    after = probes.snapshot()
    assert set(reasons(probes, before, after).values()) == {""}
    took_s = (after.taken_ns - before.taken_ns) / 1e9
    for probe in probes.probes:
        flow = after.flows[probe.spec.flow]
        grown = flow.octets - before.flows[probe.spec.flow].octets
        if probe.is_stream:
            # Paced at 2 MB/s for 1.5 s, on a slow machine for longer.
            assert 2_000_000 < grown < 2_000_000 * (1 + took_s), probe.name
        elif probe.spec.kind == "udp":
            exchanges = flow.exchanges - before.flows[probe.spec.flow].exchanges
            assert 1000 < exchanges <= 1000 * took_s + 200, probe.name
    assert after.strangers == ()


def test_a_cut_is_an_outage_of_its_length_and_no_flow_is_lost(
    probes: ProbeSet, tmp_path: Path
) -> None:
    before = wait_for(probes, "flows open", all_open)
    start_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    run(f"ip netns exec {PREFIX}client nft -f {drop_file(tmp_path)}")
    time.sleep(0.15)
    run(f"ip netns exec {PREFIX}client nft delete table inet cut")
    healed_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    time.sleep(0.05)
    middle = probes.snapshot()
    probes.exchange()  # After it: an answer that came before would not be a new one.
    after = wait_for(
        probes, "flows alive", lambda now: not any(reasons(probes, middle, now).values())
    )
    worst_ms = outage_ns(after.flows[udp_v4(probes).spec.flow], start_ns, after.taken_ns) / 1e6
    # The next answer comes a tick and a round trip later; the rest is for a slow machine.
    assert 140 < worst_ms < (healed_ns - start_ns) / 1e6 + 2000
    for probe in probes.probes:
        flow = after.flows[probe.spec.flow]
        assert flow.state == "open"
        assert flow.wrong == 0
        if probe.spec.kind in ("udp", "icmp"):
            assert flow.sent > flow.exchanges
            assert before.flows[probe.spec.flow].exchanges < flow.exchanges


def drop_file(folder: Path) -> str:
    path = folder / "cut.nft"
    path.write_text(
        "table inet cut {\n"
        " chain out {\n  type filter hook output priority 0; policy drop;\n }\n"
        " chain in {\n  type filter hook input priority 0; policy drop;\n }\n}\n"
    )
    return str(path)


def test_a_dead_cable_loses_every_flow_and_says_why(probes: ProbeSet, tmp_path: Path) -> None:
    wait_for(probes, "flows open", all_open)
    run(f"ip netns exec {PREFIX}client nft -f {drop_file(tmp_path)}")
    try:
        time.sleep(0.1)
        before = probes.snapshot()
        probes.exchange()
        time.sleep(0.5)
        found = reasons(probes, before, probes.snapshot())
    finally:
        run(f"ip netns exec {PREFIX}client nft delete table inet cut")
    assert all("no answer within 1 s" in why for why in found.values()), found


def test_a_peer_that_is_not_the_vip_is_wrong(cable: None) -> None:
    direct = tuple(
        replace(place, client=client)
        for place, client in zip(INSIDE, ("192.0.2.10", "2001:db8:1::10"), strict=True)
    )
    probe_set = ProbeSet(spawn, direct, plan_probes(direct, octets_s=1_000_000))
    try:
        probe_set.start()
        snapshot = wait_for(
            probe_set,
            "wrong peers are noticed",
            lambda now: sum(flow.wrong > 0 for flow in now.flows.values()) == 10,
        )
    finally:
        probe_set.close()
    wrong = {probe.name for probe in probe_set.probes if snapshot.flows[probe.spec.flow].wrong}
    # ICMP is answered by a kernel, which asks nobody.
    assert wrong == {"snat udp", "snat tcp-echo", "snat tcp-idle", "snat tcp-up", "snat tcp-down"}
    whys = " ".join(flow.wrong_why for flow in snapshot.flows.values())
    assert "the peer is seen as 192.0.2.10, not" in whys


def test_a_reset_connection_is_lost_with_its_reason(probes: ProbeSet) -> None:
    before = wait_for(probes, "flows open", all_open)
    run(f"ip netns exec {PREFIX}server ss -K dport = 8080")
    after = wait_for(
        probes,
        "DNAT echo flows fail",
        lambda now: sum(flow.state == "failed" for flow in now.flows.values()) >= 2,
    )
    found = reasons(probes, before, after)
    assert "failed: " in found["dnat tcp-echo v4"]


def test_an_agent_refuses_what_it_cannot_do_and_survives(cable: None) -> None:
    agent = LineProcess(spawn, "client", "hafw.lab.probe_agent")
    try:
        for line, words in (
            (b"{", "Input data was truncated"),
            (b'{"op": "dance"}', "unknown request: dance"),
            (msgspec.json.encode(Request("serve", addresses=["203.0.113.1"], port=7)), "assign"),
        ):
            answer = msgspec.json.decode(agent.ask(line, timeout_s=WAIT_S), type=Answer)
            assert words in answer.error
        answer = msgspec.json.decode(agent.ask(b'{"op": "report"}', timeout_s=WAIT_S), type=Answer)
        assert answer.error == ""
    finally:
        agent.close()


def test_a_child_that_dies_is_reported_with_its_last_words(cable: None) -> None:
    child = LineProcess(spawn, "client", "hafw.lab.no_such_module")
    try:
        with pytest.raises(StateError, match=r"ended with code 1: .*No module named"):
            child.ask(b"{}", timeout_s=WAIT_S)
    finally:
        child.close()
