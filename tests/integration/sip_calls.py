"""Calls by SIPp (Debian sip-tester) across the two gateways of `helper_world`.

Caller and callee each send RTP of their own, one begins before the other. A call is frozen by
SIGSTOP between its answer and its first RTP, so that the fault falls there however slow the
machine is. What arrives is counted by nft at the two ends, not by what SIPp says.
"""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration.ct_spaces import inside
from tests.integration.helper_world import INSIDE, OUTSIDE, VIP, HelperWorld
from tests.integration.syncd_world import wait_for

RTP_PACKETS_MIN = 10
"""200 ms of it; each end sends some 500 ms."""
CALLEE_PORT, CALLER_PORT = 6000, 7000
CALLEE_WAITS_MS = 1200
CALLER_WAITS_MS = {("snat", 4): 900, ("dnat", 4): 1600, ("snat", 6): 1600, ("dnat", 6): 900}
"""From the ACK to the first RTP: some callers speak before the callee, some after it."""

SDP = """v=0
o=user 1 1 IN IP[media_ip_type] [media_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000
"""
_FROM = "From: <sip:caller@[local_ip]:[local_port]>;tag=[pid]t[call_number]"
_TO = "To: <sip:callee@[remote_ip]:[remote_port]>"
_VIA = "Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]"
_CONTACT = "Contact: <sip:[local_ip]:[local_port];transport=[transport]>"
_MIRRORED = "[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]t[call_number]\n[last_Call-ID:]\n"
_MIRRORED += "[last_CSeq:]\n"
_RTP = '<nop><action><exec rtp_stream="{folder}/rtp.raw,-1,0"/></action></nop>'


def _send(text: str, *, sdp: bool = False, again: bool = False) -> str:
    body = f"Content-Type: application/sdp\nContent-Length: [len]\n\n{SDP}"
    retrans = ' retrans="500"' if again else ""
    return (
        f"<send{retrans}><![CDATA[\n{text}\n{body if sdp else 'Content-Length: 0'}\n\n]]></send>"
    )


def _request(method: str, uri: str, number: int, more: str, **options: bool) -> str:
    to = _TO if number == 1 and method != "ACK" else f"{_TO}[peer_tag_param]"
    head = f"{method} {uri} SIP/2.0\n{_VIA}\n{_FROM}\n{to}\nCall-ID: [call_id]\n"
    return _send(f"{head}CSeq: {number} {method}\nMax-Forwards: 70{more}", **options)


def _scenario(*steps: str) -> str:
    head = '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<scenario name="hafw">\n'
    return head + "\n".join(steps) + "\n</scenario>\n"


def caller(folder: Path, waits_ms: int, ack_waits_ms: int = 0) -> str:
    return _scenario(
        _request("INVITE", "sip:callee@[remote_ip]:[remote_port]", 1, f"\n{_CONTACT}",
                 sdp=True, again=True),
        '<recv response="180" optional="true"/>',
        '<recv response="200" rrs="true"/>',
        f'<pause milliseconds="{ack_waits_ms}"/>',
        _request("ACK", "[next_url]", 1, ""),
        f'<pause milliseconds="{waits_ms}"/>',
        _RTP.format(folder=folder),
        '<pause milliseconds="800"/>',
        _request("BYE", "[next_url]", 2, "", again=True),
        '<recv response="200"/>',
    )  # fmt: skip


def callee(folder: Path) -> str:
    return _scenario(
        '<recv request="INVITE"/>',
        _send(f"SIP/2.0 180 Ringing\n{_MIRRORED}{_CONTACT}"),
        _send(f"SIP/2.0 200 OK\n{_MIRRORED}{_CONTACT}", sdp=True, again=True),
        '<recv request="ACK"/>',
        f'<pause milliseconds="{CALLEE_WAITS_MS}"/>',
        _RTP.format(folder=folder),
        '<recv request="BYE"/>',
        _send(f"SIP/2.0 200 OK\n{_MIRRORED}{_CONTACT}"),
    )


def telephone() -> str:
    """Registers for ten minutes."""
    contact = "\nContact: <sip:phone@[local_ip]:[local_port]>\nExpires: 600"
    return _scenario(
        _request("REGISTER", "sip:[remote_ip]", 1, contact, again=True),
        '<recv response="200"/>',
    )


def registrar() -> str:
    return _scenario(
        '<recv request="REGISTER"/>',
        '<pause milliseconds="50"/>',
        _send(f"SIP/2.0 200 OK\n{_MIRRORED}[last_Contact:]\nExpires: 600"),
    )


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass
class Sipp(AbstractContextManager["Sipp"]):
    """SIPp processes of one world; `folder` holds their scenarios and logs."""

    world: HelperWorld
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Sipp:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "rtp.raw").write_bytes(b"\x7f" * 16_000)
        for space in (self.world.inside, self.world.outside):
            inside(space, "nft", "-f", "-", stdin=_counters())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for process in self.running:
            process.kill()
            process.wait(10)

    def start(
        self, space: str, scenario: str, host: str, port: int, media: int, *more: str
    ) -> subprocess.Popen[bytes]:
        name = f"{len(self.running)}-{port}-{media}"
        (self.folder / f"{name}.xml").write_text(scenario)
        argv = ["nsenter", f"--net=/run/netns/{space}", "sipp", "-sf", f"{name}.xml", *more]
        argv += ["-i", host, "-p", str(port), "-mi", host, "-mp", str(media), "-nostdin"]
        argv += ["-timeout", "20", "-timeout_error", "-trace_err"]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(argv, cwd=self.folder, stdout=log, stderr=log)
        self.running.append(process)
        return process

    def call(self, translation: str, version: int, *, tcp: bool = False) -> None:
        """Over TCP the ACK comes late, and is rewritten when nobody looks for the sake of an
        expectation any more."""
        world, snat = self.world, translation == "snat"
        near, far = (world.inside, world.outside) if snat else (world.outside, world.inside)
        own, there = (INSIDE, OUTSIDE) if snat else (OUTSIDE, INSIDE)
        target = _bracketed(OUTSIDE[version] if snat else VIP[version])
        more = ("-m", "1", "-t", "t1" if tcp else "u1")
        self.start(far, callee(self.folder), there[version], 5060, CALLEE_PORT, *more)
        self.wait_bound(far, there[version], 5060)
        text = caller(self.folder, CALLER_WAITS_MS[translation, version], 600 * tcp)
        self.start(near, text, own[version], 5061, CALLER_PORT, *more, f"{target}:5060")

    def wait_bound(self, space: str, host: str, port: int) -> None:
        def bound() -> bool:
            return host in inside(space, "ss", "-Hlntu", "sport", "=", str(port))

        wait_for(f"SIPp on {host} port {port}", bound)

    def signal(self, number: signal.Signals, latest: int = 0) -> None:
        """To the latest so many, or to all."""
        for process in self.running[-latest:]:
            if process.poll() is None:
                process.send_signal(number)

    def ended(self) -> list[int]:
        return [process.wait(25) for process in self.running]

    def errors(self) -> str:
        texts = [file.read_text() for file in sorted(self.folder.glob("*_errors.log"))]
        return "\n".join(texts)[-2000:]

    def rtp(self) -> dict[str, int]:
        """Packets that arrived, by end, family and port."""
        found: dict[str, int] = {}
        for name, space in (("inside", self.world.inside), ("outside", self.world.outside)):
            listed: dict[str, list[dict[str, Any]]] = json.loads(
                inside(space, "nft", "-j", "list", "counters", "table", "inet", "rtp")
            )
            for item in listed["nftables"]:
                if "counter" in item:
                    one = item["counter"]
                    found[f"{name} {one['name']}"] = one["packets"]
        return found


def _counters() -> str:
    names = [(v, port) for v in (4, 6) for port in (CALLEE_PORT, CALLER_PORT)]
    made = "\n".join(f"counter v{v}_{port} {{ }}" for v, port in names)
    rules = "\n".join(
        f'meta nfproto ipv{v} udp dport {port} counter name "v{v}_{port}"' for v, port in names
    )
    return f"""
        table inet rtp {{
          {made}
          chain arrives {{
            type filter hook input priority 0;
            {rules}
          }}
        }}
    """
