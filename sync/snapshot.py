"""Full copies of a group's flows, served over ZeroMQ with CURVE. The server, and the protocol.

::

    client (follower)                           server (the holder)
      SnapshotRequest(group, buckets) ---------->
      <--------------------- SnapshotHead(position, epoch)     or SnapshotRefused(reason)
      <--------------------- SnapshotChunk(index, deltas) ...  at most `CHUNKS_IN_FLIGHT`
      SnapshotCredit(applied) ------------------->
      <--------------------- SnapshotEnd(chunks, position)
      SnapshotCredit(applied, done) ------------->

The position is the stream's when the dump began: what changes later comes as live deltas, which
win over the snapshot. A repair (`sync.digests`) asks for some buckets of the flow hash alone. The
server reads its kernel and joins each entry with its registry; entries that the registry does not
know (not worth a replica yet) or knows as another life are left out. Expected flows come after all
others, so that their masters are there, and then the expectations; children beyond
`CHILDREN_LATE_MAX` come as the dump shows them, and may stay without a master.
It serves a group only while it holds it and has said all of its flows under its own epoch.

A broken connection ends nothing. The client asks, over another link, to go on with its request at
the chunk that it has not got; the server keeps a request, and what of it was sent and not
acknowledged, for `JOB_SILENT_S`.

Both CURVE secrets derive from the cluster's sync keys (`sync.curve`); the ZAP handler lets only
the derived clients in. So whoever has a sync key, and nobody else, may read the flows.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import msgspec
import zmq

from hafw.flow import FlowEntry
from hafw.keyring import Keyring
from sync.ctnetlink import parse_dump
from sync.curve import client_keys, curve_keys
from sync.delta import Delta, Upsert, encode_delta
from sync.registry import FlowRegistry
from sync.snapshot_job import Job, Serving
from sync.snapshot_join import join_entry, join_expectation
from sync.snapshot_wire import (
    ASK_BYTES_MAX,
    CHUNKS_IN_FLIGHT,
    HANDSHAKE_MS,
    SnapshotChunk,
    SnapshotCredit,
    SnapshotEnd,
    SnapshotHead,
    SnapshotRefused,
    SnapshotReply,
    SnapshotRequest,
    decode_ask,
    encode_snapshot,
)
from sync.sockets import literal, segmented

__all__ = ["CHUNKS_IN_FLIGHT", "Serving", "SnapshotServer"]

JOBS_MAX = 4
CHILDREN_LATE_MAX = 20_000
LATE_PER_CHUNK = 100
JOB_SILENT_S = 30.0
"""The request of a client that says nothing for this long is dropped."""


SILENT_GIVES_WAY_S = 3.0
"""Where all slots are taken, one whose client says nothing for this long (it would ask anew, over
another link) makes room for another node's request."""


class SnapshotServer:
    """ROUTER on every own link address (and on those of segments that stand in for links), and the
    ZAP handler in front of it."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        ring: Keyring,
        *,
        node_id: int,
        addresses: list[str],
        port: int,
        registry: FlowRegistry,
        serving: Serving,
    ) -> None:
        self._node_id = node_id
        self._registry = registry
        self._serving = serving
        self._jobs: dict[int, Job] = {}
        """By node: it has one request open at a time."""
        self._port = port
        self._stand_ins: set[str] = set()
        self._endpoints = {self._endpoint(address): False for address in addresses}
        self.counters: Counter[str] = Counter()
        self._zap = context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._router = context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.sndhwm = CHUNKS_IN_FLIGHT * JOBS_MAX + 64
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.MAXMSGSIZE, ASK_BYTES_MAX)
        self._router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._router.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        self._router.curve_server = True
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"hafw")
        self._router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._sealing: bytes | None = None
        self._segment: int | None = None
        self.use_keys(ring)

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        return self._zap, self._router

    @property
    def busy(self) -> bool:
        """A chunk could be sent now."""
        return any(self._sendable(job) for job in self._jobs.values())

    def bind(self) -> list[str]:
        """Bind what is not bound yet (call it now and then); the problems left."""
        problems: list[str] = []
        for endpoint, bound in self._endpoints.items():
            if bound:
                continue
            try:
                self._bind(endpoint)
                self._endpoints[endpoint] = True
            except (zmq.ZMQError, OSError) as error:
                problems.append(f"snapshot server {endpoint}: {error.strerror}")
        return problems

    def _endpoint(self, address: str) -> str:
        return f"tcp://{literal(address)}:{self._port}"

    def stand_in(self, addresses: set[str]) -> None:
        """Listen on these own addresses as well, and on no others of segments any more. What is
        connected stays."""
        if addresses == self._stand_ins:
            return
        for address in sorted(self._stand_ins - addresses):
            if self._endpoints.pop(self._endpoint(address)):
                self._router.unbind(self._endpoint(address))
        for address in sorted(addresses - self._stand_ins):
            self._endpoints[self._endpoint(address)] = False
        self._stand_ins = set(addresses)
        self.bind()

    def _bind(self, endpoint: str) -> None:
        self._router.setsockopt(zmq.IPV6, "[" in endpoint)
        if self._segment is None:
            self._router.bind(endpoint)
            return
        listening = segmented(endpoint, self._segment)
        try:
            self._router.setsockopt(zmq.USE_FD, listening.fileno())
            self._router.bind(endpoint)
            listening.detach()  # libzmq's now.
        finally:
            self._router.setsockopt(zmq.USE_FD, -1)
            listening.close()

    def use_segments(self, segment: int | None) -> None:
        """Of TCP, for connections to come, both ways: no larger; None: as the device has it."""
        if segment != self._segment:
            self._segment = segment
            self._unbind()

    def _unbind(self) -> None:
        for endpoint, bound in self._endpoints.items():
            if bound:
                self._router.unbind(endpoint)
                self._endpoints[endpoint] = False
        self.bind()

    def use_keys(self, ring: Keyring) -> None:
        """Let in who has one of these keys. A connection that is open stays open; a new one is
        answered with the key that this node seals with (libzmq takes it at bind)."""
        self._client_keys = client_keys(ring.by_id)
        if self._sealing == ring.sealing.key:
            return
        self._sealing = ring.sealing.key
        self._router.curve_secretkey = curve_keys(self._sealing, "server").secret
        self._unbind()

    def close(self) -> None:
        for node_id in list(self._jobs):
            self._drop(node_id)
        self._router.close()
        self._zap.close()

    def cancel_group(self, group: int) -> None:
        """The group is not ours any more."""
        for node_id, job in [item for item in self._jobs.items() if item[1].group == group]:
            self._refuse(job.identity, job.request, "the group is not held any more")
            self._drop(node_id)

    def on_readable(self, *, now: float) -> None:
        """Answer the ZAP handler, then requests and credit."""
        while (frames := self._receive(self._zap)) is not None:
            self._authenticate(frames)
        while (frames := self._receive(self._router)) is not None:
            if len(frames) != 2:
                self.counters["snapshot_malformed"] += 1
                continue
            identity, payload = frames
            try:
                message = decode_ask(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.counters["snapshot_malformed"] += 1
                continue
            match message:
                case SnapshotRequest(have=0):
                    self._begin(identity, message, now)
                case SnapshotRequest():
                    self._go_on(identity, message, now)
                case SnapshotCredit():
                    self._on_credit(identity, message, now)

    def _on_credit(self, identity: bytes, message: SnapshotCredit, now: float) -> None:
        for node_id, job in self._jobs.items():
            if (job.identity, job.request) == (identity, message.request):
                self._acknowledge(job, message.applied, now)
                if message.done:
                    self._drop(node_id)
                return

    def _acknowledge(self, job: Job, applied: int, now: float) -> None:
        job.heard_at = now
        while job.applied < applied and job.unacknowledged:
            job.unacknowledged.popleft()
            job.applied += 1

    def work(self, *, now: float) -> None:
        """Send at most one chunk for each client."""
        for node_id, job in list(self._jobs.items()):
            if now - job.heard_at > JOB_SILENT_S:
                self.counters["snapshot_client_silent"] += 1
                self._drop(node_id)
            elif self._has_room(job):
                self._step(node_id, job)

    def _has_room(self, job: Job) -> bool:
        return not (job.broken or job.ended) and len(job.unacknowledged) < CHUNKS_IN_FLIGHT

    def _sendable(self, job: Job) -> bool:
        return (job.dumper.ready or bool(job.late)) and self._has_room(job)

    def _go_on(self, identity: bytes, message: SnapshotRequest, now: float) -> None:
        """The client has all chunks below `have`, and comes over another connection."""
        job = self._jobs.get(message.node_id)
        known = job is not None and (job.request, job.group) == (message.request, message.group)
        if job is None or not known or not job.applied <= message.have <= job.sent:
            return self._refuse(identity, message.request, "that request is not known any more")
        self.counters["snapshots_resumed"] += 1
        self._acknowledge(job, message.have, now)
        job.identity, job.broken = identity, False
        for chunk in job.unacknowledged:
            self.counters["snapshot_chunks_again"] += 1
            self._say(job, chunk)
        if job.ended is not None:
            self._say(job, job.ended)
        return None

    def _say(self, job: Job, message: SnapshotReply) -> None:
        """Over its connection, while that works."""
        if not job.broken:
            job.broken = not self._send(job.identity, message)

    def _begin(self, identity: bytes, message: SnapshotRequest, now: float) -> None:
        self._drop(message.node_id)
        if not self._slot(now):
            return self._refuse(identity, message.request, f"{JOBS_MAX} snapshots under way")
        start = self._serving.start(message.group)
        if isinstance(start, str):
            return self._refuse(identity, message.request, start)
        session, seq, epoch = start
        self.counters["snapshots_served"] += 1
        head = SnapshotHead(message.request, self._node_id, session, seq, epoch)
        if self._send(identity, head):
            dumper = self._serving.dump(message.group)
            buckets = frozenset(message.buckets)
            self._jobs[message.node_id] = Job(
                identity, message.request, message.group, epoch, dumper, buckets, now
            )
        if message.buckets:
            self.counters["repairs_served"] += 1
        if message.failures:
            self._serving.doubt(message.group)
        return None

    def _slot(self, now: float) -> bool:
        """Is one free, or can one be made?"""
        taken = {node: job.heard_at for node, job in self._jobs.items() if job.ended is None}
        if len(taken) < JOBS_MAX:
            return True
        quietest = min(taken, key=taken.__getitem__)
        if now - taken[quietest] < SILENT_GIVES_WAY_S:
            return False
        self.counters["snapshot_silent_gave_way"] += 1
        self._drop(quietest)
        return True

    def _step(self, node_id: int, job: Job) -> None:
        chunk = job.dumper.take_any()
        if chunk is not None:
            self._send_joined(job, chunk)
        elif job.dumper.error is not None:
            self.counters["snapshot_dump_failed"] += 1
            self._refuse(job.identity, job.request, str(job.dumper.error))
            self._drop(node_id)
        elif job.dumper.done:
            if job.late is None:
                expected = [
                    join_expectation(self._registry, job, e) for e in job.dumper.expectations
                ]
                job.late = [*job.children, *(delta for delta in expected if delta is not None)]
            if job.late:
                late, job.late = job.late[:LATE_PER_CHUNK], job.late[LATE_PER_CHUNK:]
                self._send_chunk(job, late)
            else:
                position = self._serving.position()
                job.ended = SnapshotEnd(job.request, job.sent, job.flows, position)
                self._say(job, job.ended)

    def _send_joined(self, job: Job, chunk: list[FlowEntry] | bytes) -> None:
        plain, flows = b"", 0
        if isinstance(chunk, bytes):
            assert self._serving.plain is not None, "a raw dump, and nothing that reads it"
            plain, flows, rest = self._serving.plain(chunk, job.epoch, job.buckets)
            chunk = parse_dump(b"".join(rest)).entries
        job.flows += flows
        self._send_chunk(job, self._joined(job, chunk), plain)

    def _send_chunk(self, job: Job, deltas: list[Delta], plain: bytes = b"") -> None:
        job.flows += sum(isinstance(delta, Upsert) for delta in deltas)
        said = [encode_delta(delta, header_epoch=job.epoch) for delta in deltas]
        payload = b"".join((plain, *said))
        chunk = SnapshotChunk(job.request, job.sent, payload)
        job.unacknowledged.append(chunk)
        job.sent += 1
        self.counters["snapshot_chunks_sent"] += 1
        self._say(job, chunk)

    def _joined(self, job: Job, entries: list[FlowEntry]) -> list[Delta]:
        deltas: list[Delta] = []
        for entry in entries:
            delta = join_entry(self._registry, job, entry)
            if delta is None:
                continue
            late = entry.master is not None and len(job.children) < CHILDREN_LATE_MAX
            (job.children if late else deltas).append(delta)
        return deltas

    def _refuse(self, identity: bytes, request: int, reason: str) -> None:
        self.counters["snapshots_refused"] += 1
        self._send(identity, SnapshotRefused(request, reason))

    def _drop(self, node_id: int) -> None:
        job = self._jobs.pop(node_id, None)
        if job is not None:
            job.dumper.cancel()

    def _send(self, identity: bytes, message: SnapshotReply) -> bool:
        try:
            self._router.send_multipart([identity, encode_snapshot(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            self.counters["snapshot_send_failed"] += 1
            return False
        return True

    def _authenticate(self, frames: list[bytes]) -> None:
        """RFC 27 (ZAP): identity, empty, version, request, domain, address, peer identity,
        mechanism, credentials."""
        if len(frames) < 8:
            return
        identity, request, mechanism = frames[0], frames[3], frames[7]
        allowed = mechanism == b"CURVE" and len(frames) == 9 and frames[8] in self._client_keys
        status = [b"200", b"OK", b"hafw"] if allowed else [b"400", b"not a member", b""]
        self.counters["snapshot_clients_let_in" if allowed else "snapshot_clients_refused"] += 1
        with contextlib.suppress(zmq.ZMQError):
            self._zap.send_multipart([identity, b"", b"1.0", request, *status, b""], zmq.NOBLOCK)

    @staticmethod
    def _receive(sock: zmq.Socket[bytes]) -> list[bytes] | None:
        try:
            return sock.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
