"""TCP connections that really send: which of a node's flows are still liberal. Shell.

A share of the churn's flows must have packets, because only packets teach a kernel a flow's
windows. The connections echo a little text in both directions, over and over, through whichever
gateway carries them.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from ipaddress import ip_address

from hafw.errors import StateError
from hafw.flow import AF_INET, IPPROTO_TCP, TCP_FLAG_BE_LIBERAL, FlowKey, Tuple
from hafw.kernel.netns import entered
from hafw.lab.sync_network import CLIENT, SERVER
from sync.ctsocket import RequestSocket

__all__ = ["Traffic"]

PORT = 7777
ROUND_S = 0.2
CONNECT_WAIT_S = 5.0
TEXT = b"there and back again" * 8


class Traffic:
    """`count` connections from the client's namespace to an echo server in the server's."""

    def __init__(self, client: str, server: str, count: int) -> None:
        with entered(server):
            listener = socket.create_server((SERVER, PORT), backlog=count + 1)
        self._clients: list[socket.socket] = []
        self._servers: list[socket.socket] = []
        self.broken: list[str] = []
        with listener:
            listener.settimeout(CONNECT_WAIT_S)
            for _ in range(count):
                with entered(client):
                    sock = socket.socket()
                    sock.bind((CLIENT, 0))
                self._clients.append(sock)
                sock.settimeout(CONNECT_WAIT_S)
                try:
                    sock.connect((SERVER, PORT))
                    self._servers.append(listener.accept()[0])
                except OSError as error:
                    self.close()
                    raise StateError(f"no connection through the gateway: {error}") from None
        for sock in (*self._clients, *self._servers):
            sock.setblocking(False)
        self.keys = [self._key(sock) for sock in self._clients]
        self._received = dict.fromkeys(self._clients, 0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _key(sock: socket.socket) -> FlowKey:
        src, dst = ip_address(CLIENT).packed, ip_address(SERVER).packed
        return FlowKey(0, Tuple(AF_INET, IPPROTO_TCP, src, dst, sock.getsockname()[1], PORT))

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        for sock in (*self._clients, *self._servers):
            selector.register(sock, selectors.EVENT_READ)
        by_descriptor = {sock.fileno(): sock for sock in (*self._clients, *self._servers)}
        servers, send_at = set(self._servers), 0.0
        while not self._ending.is_set():
            if time.monotonic() >= send_at:
                send_at = time.monotonic() + ROUND_S
                for sock in self._clients:
                    self._send(sock, TEXT)
            for key, _ in selector.select(ROUND_S / 4):
                sock = by_descriptor[key.fd]
                try:
                    text = sock.recv(65536)
                except BlockingIOError:
                    continue
                except OSError as error:
                    text = b""
                    self.broken.append(str(error))
                if not text:
                    selector.unregister(sock)
                elif sock in servers:
                    self._send(sock, text)
                else:
                    self._received[sock] += len(text)
        selector.close()

    def _send(self, sock: socket.socket, text: bytes) -> None:
        try:
            sock.send(text)
        except BlockingIOError:
            pass  # Nothing comes back at the moment; TCP repeats.
        except OSError as error:
            self.broken.append(str(error))

    def progress(self) -> list[int]:
        """Octets that came back, a connection each."""
        return list(self._received.values())

    def liberal(self, node: RequestSocket) -> int:
        """How many of the connections are liberal, or missing, in this kernel."""
        count = 0
        for key in self.keys:
            entry = node.get(key)
            tcp = None if entry is None else entry.tcp
            count += tcp is None or bool((tcp.flags_orig | tcp.flags_reply) & TCP_FLAG_BE_LIBERAL)
        return count

    def close(self) -> None:
        if hasattr(self, "_ending"):
            self._ending.set()
            self._thread.join(5)
        for sock in (*self._clients, *self._servers):
            sock.close()
