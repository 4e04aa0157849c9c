"""hafwd with other programs in place of its children and workers: `python stub_node.py ROLE ...`.

The stand-ins are as honest as hafwd can tell: the daemons hold the real lock, bind the real
socket and answer with real messages. A folder named by HAFW_STUBS steers them: the file
``setup.error`` or ``policy.error`` makes that worker fail with its text, ``policy.hold`` makes a
load wait (10 s at most) while it exists, ``policy.foreign`` lists others' chains, ``down`` says
that an interface is, ``tables`` is the kernel's nftables, ``forwarding`` its sysctl, and every
run of a worker adds a line to ``runs``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from cluster.assignment import State
from cluster.assignment import encode as encode_assignment
from hafw.errors import HafwError
from hafw.instance import claim_instance
from hafw.messages import (
    LeasedStatus,
    LoopDelay,
    MoveReply,
    MoveRequest,
    StatusRequest,
    SyncdStatus,
    decode_leased,
    encode,
)
from hafw.node.daemon import parse_arguments, run_hafwd
from hafw.node.parts import Parts
from hafw.paths import NodePaths
from hafw.raft_messages import RaftStatus, encode_raft

STUBS = Path(os.environ.get("HAFW_STUBS", "/nonexistent"))


def main() -> int:
    role, arguments = sys.argv[1], sys.argv[2:]
    if role == "hafwd":
        return hafwd(arguments)
    options = parse_arguments(arguments[:4])
    if role in ("leased", "syncd", "raftd"):
        return daemon(role, NodePaths(options.node))
    with (STUBS / "runs").open("a") as runs:
        runs.write(f"{role} {' '.join(arguments[4:])}\n")
    error_file = STUBS / f"{role}.error"
    error = error_file.read_text() if error_file.exists() else ""
    if role == "policy":
        return policy(arguments, error)
    if error:
        sys.stderr.write(f"hafw.node.setup: error: {error}\n")
        return 1
    (STUBS / "devices").touch()
    return 0


def hafwd(arguments: list[str]) -> int:
    def program(role: str) -> tuple[str, ...]:
        return (sys.executable, __file__, role)

    def set_forwarding(on: bool) -> None:
        (STUBS / "forwarding").write_text("1" if on else "0")

    parts = Parts(
        children={name: program(name) for name in ("leased", "syncd", "raftd")},
        setup=program("setup"),
        policy=program("policy"),
        missing_features=lambda _: [],
        check_node=lambda *_: (
            [] if (STUBS / "devices").exists() else ["hv1-lan is missing"],
            ["lan0 is down"] if (STUBS / "down").exists() else [],
        ),
        policy_in_kernel=(STUBS / "tables").exists,
        set_forwarding=set_forwarding,
    )
    try:
        run_hafwd(parse_arguments(arguments), parts)
    except HafwError as error:
        sys.stderr.write(f"hafwd: error: {error}\n")
        return 1
    return 0


def policy(arguments: list[str], error: str) -> int:
    others = STUBS / "policy.foreign"
    foreign = others.read_text().splitlines() if others.exists() else []
    drops = [line for line in foreign if "drop" in line]
    told = {"foreign": foreign, "foreign_drops": drops}
    if error or "--verify" in arguments:
        sys.stdout.write(json.dumps({"ok": not error, "error": error, **told}) + "\n")
        return 1 if error else 0
    deadline = time.monotonic() + 10
    while (STUBS / "policy.hold").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    (STUBS / "tables").touch()
    file = arguments[arguments.index("--policy") + 1]
    sys.stdout.write(json.dumps({"ok": True, "hash": f"hash of {Path(file).name}", **told}) + "\n")
    return 0


def daemon(role: str, paths: NodePaths) -> int:
    address = paths.leased_socket if role == "leased" else paths.syncd_socket
    try:
        instance = claim_instance(paths, role)
    except HafwError as error:
        sys.stderr.write(f"hafw-{role}: error: {error}\n")
        return 1

    def stop(_number: int, _frame: FrameType | None) -> None:
        with (STUBS / "stops").open("a") as stops:
            stops.write(f"{role}\n")
        instance.release()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    if role == "raftd":
        return raftd(paths)
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(address))
        while True:
            datagram, sender = bound.recvfrom(65536)
            # Who asked while this process was stopped is gone by now.
            with suppress(FileNotFoundError, ConnectionRefusedError):
                if isinstance(decode_leased(datagram), StatusRequest):
                    answer = leased_status() if role == "leased" else syncd_status()
                    bound.sendto(encode(answer), sender)
                elif isinstance(decode_leased(datagram), MoveRequest):
                    bound.sendto(encode(MoveReply(False, False, 0, "gw2 is not synced")), sender)


def raftd(paths: NodePaths) -> int:
    paths.raftd_socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(paths.raftd_socket))
        listening.listen()
        listening.settimeout(1.0)
        while STUBS.exists():  # Started while its test ended: nobody knows its pid.
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.send(encode_raft(raft_status()))
    return 0


def raft_status() -> RaftStatus:
    return RaftStatus(
        node_id=1, pid=os.getpid(), uid=0, role="follower", leader_id=2, term=1, commit=1,
        applied=1, entries=1, quorum=True, read_only=False, recovering="", peers=[],
        state=encode_assignment(State()), digest="", counters={}, alarms=[],
    )  # fmt: skip


def leased_status() -> LeasedStatus:
    return LeasedStatus(
        node_id=1, pid=os.getpid(), session=1, era=1, now_ns=0, may_vote=True, votes_from_ns=0,
        voters_id=1, voters_hash="", realtime=False, groups=[], peers=[],
        loop_delay=LoopDelay(0, 0, 0), counters={"stub": 1}, alarms=[],
    )  # fmt: skip


def syncd_status() -> SyncdStatus:
    return SyncdStatus(1, os.getpid(), 1, 0, "stub", [], [], {}, [])


if __name__ == "__main__":
    sys.exit(main())
