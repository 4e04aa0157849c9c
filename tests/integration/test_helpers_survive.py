"""Real protocols with helpers through a power cut and through there-and-back.

FTP against pyftpdlib, and, where the moment of the data connection matters (pyftpdlib connects at
PORT), against a server of a few lines that waits. Every promise has its counter-test: the same
run with a syncd that forgets expectations, or sequence adjustment, fails (in `make test-all`).
"""

from __future__ import annotations

import ftplib
import io
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest

from hafw.kernel.netns import entered
from tests.integration.ct_spaces import run
from tests.integration.helper_world import (
    INSIDE,
    OUTSIDE,
    VIP,
    WAIT_S,
    HelperWorld,
    dial,
    helper_world,
    listener,
)
from tests.integration.syncd_world import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

UDP = socket.SOCK_DGRAM
CONTENT = bytes(range(256)) * 400
SERVER = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer
authorizer = DummyAuthorizer()
authorizer.add_user("user", "secret", sys.argv[2], perm="elradfmw")
FTPHandler.authorizer = authorizer
FTPHandler.permit_foreign_addresses = True  # It compares texts; the kernel writes 2001:0db8:...
ThreadedFTPServer((sys.argv[1], 21), FTPHandler).serve_forever()
"""


class Client(ftplib.FTP):
    """In the namespace where it was made, also for its data connections."""

    trust_server_pasv_ipv4_address = True  # The rewritten reply is what is tested.

    def __init__(self, space: str) -> None:
        self._space = space
        super().__init__(timeout=WAIT_S)

    def ntransfercmd(
        self, cmd: str, rest: int | str | None = None
    ) -> tuple[socket.socket, int | None]:
        with entered(self._space):
            return super().ntransfercmd(cmd, rest)


@dataclass(frozen=True)
class Session:
    name: str
    ftp: Client

    def transfer(self, text: str) -> None:
        """Both ways, and a command before and after."""
        assert self.ftp.pwd() == "/"
        got = io.BytesIO()
        self.ftp.retrbinary("RETR file", got.write)
        assert got.getvalue() == CONTENT
        self.ftp.storbinary(f"STOR {text}", io.BytesIO(CONTENT))
        assert self.ftp.size(text) == len(CONTENT)


def listens(space: str, host: str) -> bool:
    argv = ("ip", "netns", "exec", space, "ss", "-Hltn", "sport", "=", "21")
    return host in run(*argv)


@contextmanager
def servers(world: HelperWorld, folder: Path) -> Iterator[None]:
    home = folder / "ftp"
    home.mkdir()
    (home / "file").write_bytes(CONTENT)
    running = []
    try:
        for space, hosts in ((world.inside, INSIDE), (world.outside, OUTSIDE)):
            for host in hosts.values():
                argv = ["nsenter", f"--net=/run/netns/{space}", sys.executable, "-c", SERVER]
                argv += [host, str(home)]
                running.append(subprocess.Popen(argv, stderr=subprocess.DEVNULL))
                wait_for(f"FTP on {host}", partial(listens, space, host))
        yield
    finally:
        for process in running:
            process.kill()
            process.wait(10)


def open_sessions(stack: ExitStack, world: HelperWorld) -> list[Session]:
    """Active and passive, through SNAT and DNAT, IPv4 and IPv6; each has used its connection."""
    sessions = []
    for version, translation, passive in product((4, 6), ("snat", "dnat"), (False, True)):
        space, target = (
            (world.inside, OUTSIDE[version])
            if translation == "snat"
            else (world.outside, VIP[version])
        )
        ftp = Client(space)
        stack.callback(ftp.close)
        with entered(space):
            ftp.connect(target)
        ftp.login("user", "secret")
        ftp.voidcmd("TYPE I")
        ftp.set_pasv(passive)
        name = f"v{version}-{translation}-{'passive' if passive else 'active'}"
        session = Session(name, ftp)
        session.transfer(f"{name}-before")
        sessions.append(session)
    return sessions


def failures(sessions: list[Session], when: str) -> dict[str, str]:
    """All at once: those that fail take their time."""

    def tried(session: Session) -> str:
        try:
            session.transfer(f"{session.name}-{when}")
        except (OSError, EOFError, AssertionError, ftplib.Error) as error:
            return repr(error)
        return ""

    with ThreadPoolExecutor(len(sessions)) as pool:
        found = zip(sessions, pool.map(tried, sessions), strict=True)
        return {session.name: error for session, error in found if error}


def test_ftp_transfers_begin_after_a_power_cut_and_the_return_of_the_node(tmp_path: Path) -> None:
    with helper_world() as world, servers(world, tmp_path), ExitStack() as stack:
        sessions = open_sessions(stack, world)
        world.replicated()
        masters = [
            {key: entry.master for key, entry in gateway.table().items() if entry.master}
            for gateway in world.cluster.gateways
        ]
        assert len(masters[0]) >= 2 * len(sessions), "each transfer is a child"
        assert masters[1] == masters[0]
        world.power_cut()
        assert failures(sessions, "after") == {}
        assert failures(sessions, "again") == {}
        world.back_after_power_cut()
        assert failures(sessions, "back") == {}


@pytest.mark.long
def test_without_sequence_adjustment_they_do_not(tmp_path: Path) -> None:
    with helper_world(forgets="seqadj") as world, servers(world, tmp_path), ExitStack() as stack:
        sessions = open_sessions(stack, world)
        world.replicated()
        world.power_cut()
        failed = failures(sessions, "after").keys()
        # Where the rewritten payload has another length.
        assert {"v4-snat-active", "v6-snat-active", "v4-dnat-passive"} <= failed


def test_ftp_there_and_back(tmp_path: Path) -> None:
    with helper_world() as world, servers(world, tmp_path), ExitStack() as stack:
        sessions = open_sessions(stack, world)
        for counter, number in enumerate((2, 1, 2, 1), 2):
            world.replicated(3 - number)
            world.move(number, counter)
            assert failures(sessions, f"at{counter}") == {}


# -- an expectation that is pending at the cut


@dataclass(frozen=True)
class Pending:
    """A control connection on which PORT or PASV was said; `finish` makes the data connection
    and sends a word each way over it, and then one over the control connection."""

    name: str
    finish: Callable[[], None]


def exchange(one: socket.socket, other: socket.socket, word: bytes) -> None:
    one.sendall(word)
    assert other.recv(1000) == word
    other.sendall(word[::-1])
    assert one.recv(1000) == word[::-1]


def talk(client: socket.socket, server: socket.socket) -> None:
    """A command and its answer: whole lines, or the helper loses its place."""
    client.sendall(b"NOOP\r\n")
    assert server.recv(1000) == b"NOOP\r\n"
    server.sendall(b"200 NOOP command successful.\r\n")
    assert client.recv(1000) == b"200 NOOP command successful.\r\n"


def port_command(version: int, address: str, port: int) -> bytes:
    if version == 6:
        return f"EPRT |2|{address}|{port}|\r\n".encode()
    return f"PORT {address.replace('.', ',')},{port >> 8},{port & 255}\r\n".encode()


def read_port(version: int, said: bytes) -> tuple[str, int]:
    if version == 6:
        _, _, address, port, _ = said.decode().split("|")
        return str(ip_address(address)), int(port)  # The kernel writes all zeros.
    numbers = re.findall(r"\d+", said.decode().removeprefix("227"))
    return ".".join(numbers[:4]), int(numbers[4]) << 8 | int(numbers[5])


def pasv_reply(version: int, address: str, port: int) -> bytes:
    if version == 6:
        return f"229 Entering Extended Passive Mode (|||{port}|)\r\n".encode()
    numbers = f"{address.replace('.', ',')},{port >> 8},{port & 255}"
    return f"227 Entering Passive Mode ({numbers})\r\n".encode()


def pending(
    stack: ExitStack, world: HelperWorld, version: int, translation: str, passive: bool
) -> Pending:
    """One conversation, up to the answer that announces the data connection."""
    snat = translation == "snat"
    near, far = (world.inside, world.outside) if snat else (world.outside, world.inside)
    own, there = (INSIDE, OUTSIDE) if snat else (OUTSIDE, INSIDE)
    target = OUTSIDE[version] if snat else VIP[version]
    with listener(far, version, there[version], 21, socket.SOCK_STREAM) as door:
        client = stack.enter_context(dial(near, version, target, 21))
        server = stack.enter_context(door.accept()[0])
    server.settimeout(WAIT_S)
    talk(client, server)
    if passive:
        data = stack.enter_context(listener(far, version, there[version], 0, socket.SOCK_STREAM))
        client.sendall(b"EPSV\r\n" if version == 6 else b"PASV\r\n")
        server.recv(1000)
        server.sendall(pasv_reply(version, there[version], data.getsockname()[1]))
        said = client.recv(1000)
        if version == 6:
            port = int(said.decode().split("|")[3])
            aim = (near, version, target, port)
        else:
            address, port = read_port(version, said)
            assert address == target, "the reply is rewritten"
            aim = (near, version, address, port)
    else:
        data = stack.enter_context(listener(near, version, own[version], 0, socket.SOCK_STREAM))
        client.sendall(port_command(version, own[version], data.getsockname()[1]))
        address, port = read_port(version, server.recv(1000))
        assert address == (VIP[version] if snat else own[version])
        server.sendall(b"200 PORT command successful.\r\n")
        client.recv(1000)
        aim = (far, version, address, port)

    def finish() -> None:
        with dial(*aim) as one, data.accept()[0] as other:
            other.settimeout(WAIT_S)
            exchange(one, other, b"content")
        talk(client, server)

    return Pending(f"v{version}-{translation}-{'passive' if passive else 'active'}", finish)


ALL_FTP = list(product((4, 6), ("snat", "dnat"), (False, True)))


def unfinished(conversations: list[Pending]) -> set[str]:
    def finished(conversation: Pending) -> bool:
        try:
            conversation.finish()
        except (OSError, AssertionError):
            return False
        return True

    with ThreadPoolExecutor(len(conversations)) as pool:
        found = zip(conversations, pool.map(finished, conversations), strict=True)
        return {conversation.name for conversation, done in found if not done}


def test_ftp_data_that_is_expected_at_the_cut_comes_after_it() -> None:
    with helper_world() as world, ExitStack() as stack:
        conversations = [pending(stack, world, *one) for one in ALL_FTP]
        world.replicated()
        world.power_cut()
        assert unfinished(conversations) == set()


@pytest.mark.long
def test_without_expectations_it_does_not() -> None:
    with helper_world(forgets="expectations") as world, ExitStack() as stack:
        conversations = [pending(stack, world, *one) for one in ALL_FTP]
        world.replicated()
        world.power_cut()
        assert unfinished(conversations) == {one.name for one in conversations}


def test_expected_data_comes_by_a_node_that_joined_later() -> None:
    """gw2's syncd starts after PORT and PASV: it has the expectations from the snapshot."""
    with helper_world() as world, ExitStack() as stack:
        second = world.cluster[2]
        second.stop()
        second.flush()
        conversations = [pending(stack, world, *one) for one in ALL_FTP]
        second.start()
        second.wait_synced()
        world.replicated()
        world.power_cut()
        assert unfinished(conversations) == set()


def test_expected_data_comes_after_there_and_back() -> None:
    with helper_world() as world, ExitStack() as stack:
        conversations = [pending(stack, world, *one) for one in ALL_FTP]
        world.replicated()
        world.move(2, 2)
        world.move(1, 3)
        assert unfinished(conversations) == set()
        wait_for(
            "no expectation is left",
            lambda: (
                not any(gateway.kernel.dump_expectations() for gateway in world.cluster.gateways)
            ),
        )


# -- TFTP


def test_tftp_that_is_answered_after_the_cut() -> None:
    """The answer comes from a port of its own: without the expectation it is dropped."""
    assert tftp_answers("") == {4: True, 6: True}


@pytest.mark.long
def test_without_expectations_it_is_not() -> None:
    assert tftp_answers("expectations") == {4: False, 6: False}


def tftp_answers(forgets: str) -> dict[int, bool]:
    answered = {}
    with helper_world(forgets=forgets) as world, ExitStack() as stack:
        asked = []
        for version in (4, 6):
            own, there = INSIDE[version], OUTSIDE[version]
            door = stack.enter_context(listener(world.outside, version, there, 69, UDP))
            transfer = stack.enter_context(listener(world.outside, version, there, 0, UDP))
            client = stack.enter_context(listener(world.inside, version, own, 0, UDP))
            client.sendto(b"\0\1file\0octet\0", (there, 69))
            _, peer = door.recvfrom(1000)
            asked.append((version, client, transfer, peer))
        world.replicated()
        world.power_cut()
        for version, client, transfer, peer in asked:
            transfer.sendto(b"\0\3\0\1content", peer)
            client.settimeout(1.0)
            try:
                answered[version] = client.recv(1000) == b"\0\3\0\1content"
            except TimeoutError:
                answered[version] = False
    return answered
