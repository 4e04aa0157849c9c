"""A node while hafwd runs: keep devices, policy and children as they should be; answer for them.

Order of things, because each step makes the next one safe::

    devices with the gate attached   (worker: hafw.node.setup)        ─┐
    the policy in force              (worker: hafw.policy.worker)      ├→ forwarding → hafw-leased
                                      gateways only                   ─┘
    devices with the gate attached → hafw-syncd
    hafw-leased answers, or `RAFT_WAIT_S` → hafw-raftd, which nothing waits for

If a policy cannot be loaded, one that the kernel already has is kept, with an alarm; without any,
forwarding is off and leased is not started (fail closed), while the API answers with the reason
and loading is tried again. Traffic needs no hafwd: children and kernel state outlive it, and a
new hafwd takes them over as they are, which is why nothing is decided about a running child
before devices and policy were looked at.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

import structlog

from hafw.config.model import ClusterConfig
from hafw.cpus import CpuPlan
from hafw.errors import HafwError, RefusedError
from hafw.instance import running_pid
from hafw.node.answers import Answers
from hafw.node.api import ApiServer
from hafw.node.client import LocalClient, Unavailable
from hafw.node.devices import DeviceKeeper
from hafw.node.parts import Parts
from hafw.node.policy import PolicyKeeper
from hafw.node.processes import Processes
from hafw.node.raft_client import RaftClient
from hafw.node.raft_relay import RaftRelay
from hafw.node.supervisor import (
    ChildAnswered,
    ChildExited,
    ChildReport,
    ChildStarted,
    Event,
    SetWanted,
    SignalChild,
    StartChild,
    StartFailed,
    StopAll,
    Supervisor,
)
from hafw.paths import NodePaths

__all__ = ["Node"]

LOOK_S = 1.0
"""Between two looks at devices and children."""
SETUP_RETRY_S = 2.0
RAFT_WAIT_S = 5.0
"""How long raftd leaves the CPU to what makes the node forward, at the start of hafwd."""
POLICY_LOOK_S = 0.2
"""Between two looks whether the tables are there (0.1 ms each): without them, with forwarding on,
the node is an open router. That is how long it can be one; forwarding goes off, then they are
loaded again."""
POLICY_RETRY_S = 10.0
"""Without a policy in force, loading is tried again after this long, and in any case as soon as
the file that failed has changed."""
POLICY_VERIFY_S = 60.0
"""Between two comparisons of what the kernel has with what was loaded."""
EVENT_ALARM_S = 60.0
"""How long something that hafwd has mended by itself stays an alarm; its counter stays."""


class Node:
    """Made inside the running loop that it belongs to."""

    def __init__(
        self,
        config: ClusterConfig,
        config_file: Path,
        name: str,
        paths: NodePaths,
        parts: Parts,
        cpus: CpuPlan,
        log: structlog.stdlib.BoundLogger,
        *,
        unsafe_gate: bool,
    ) -> None:
        self.config, self.name, self.paths, self._parts = config, name, paths, parts
        self._log = log
        self._unsafe_gate = unsafe_gate
        self.is_gateway = config.nodes[name].role == "gateway"
        self._own_arguments = ("--node", name, "--config", str(config_file))
        self.client, self.raft = LocalClient(paths), RaftClient(paths)
        self.relay = RaftRelay(config, name, self.client, self.raft, log)

        names = ("leased", "syncd", "raftd") if self.is_gateway else ("leased", "raftd")
        self._supervisor = Supervisor(names)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._processes = Processes(
            paths,
            {name: self._command(parts.children[name]) for name in names},
            cpus,
            on_exit=lambda child, how: self._events.put_nowait(ChildExited(child, how)),
        )
        self.policy = PolicyKeeper(
            paths,
            configured=config_file.parent / config.policy,
            config_file=config_file,
            command=self._command(parts.policy),
            cpus=cpus.all,  # It binds itself to the policy CPU before it speaks to nftables.
            in_kernel=parts.policy_in_kernel if self.is_gateway else lambda: True,
        )
        self.devices = DeviceKeeper(
            lambda: parts.check_node(config, name, unsafe_gate),
            [*self._command(parts.setup), *(["--gate-always-pass"] if unsafe_gate else [])],
            cpus.all,
            log,
        )
        self._devices_decided = self.policy_decided = False
        self._forwarding: bool | None = None
        self._forwarding_error = ""
        self._mended: dict[str, tuple[float, str]] = {}
        self._foreign_logged: tuple[str, ...] = ()
        self._reload = asyncio.Event()
        self._stop = asyncio.Event()
        self._stop_children = True
        self._gone = asyncio.Event()

    # ---- life ------------------------------------------------------------------------------

    def stop(self, stop_children: bool) -> None:
        self._stop_children = stop_children
        self._stop.set()

    def reload_policy(self) -> None:
        """Load the configured policy file again (SIGHUP)."""
        self._reload.set()

    async def run(self) -> None:
        """Until `stop`. A bug (AssertionError) ends the process; the children go on."""
        for name in self._child_names:
            if running_pid(self.paths, name) is not None:
                self._events.put_nowait(SetWanted(name, wanted=True))  # It is adopted as it is.
        self.api = ApiServer(self.paths, Answers(self).answer)
        try:
            async with asyncio.TaskGroup() as group:
                supervising = group.create_task(self._supervise())
                tasks = [group.create_task(self._keep_devices())]
                tasks.append(group.create_task(self._ask_children()))
                serving = group.create_task(self.api.serve())
                if self.is_gateway:
                    tasks.append(group.create_task(self._keep_policy()))
                else:
                    self.policy_decided = True
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
                if self._stop_children:
                    self._events.put_nowait(StopAll())
                    await self._gone.wait()
                supervising.cancel()
                serving.cancel()
        finally:
            self._processes.close()
            self.api.close()
            self.paths.hafwd_socket.unlink(missing_ok=True)

    @property
    def _child_names(self) -> list[str]:
        return [report.name for report in self._supervisor.reports(now=time.monotonic())]

    def _command(self, program: Sequence[str]) -> list[str]:
        return [*program, *self._own_arguments]

    # ---- children --------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            now = time.monotonic()
            deadline = self._supervisor.deadline()
            event: Event | None = None
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - now)):
                    event = await self._events.get()
            except TimeoutError:
                pass
            now = time.monotonic()
            if event is None:
                effects = self._supervisor.tick(now=now)
            else:
                self._log_event(event)
                effects = self._supervisor.handle(event, now=now)
            for effect in effects:
                match effect:
                    case StartChild(name):
                        self._events.put_nowait(self._processes.start(name))
                    case SignalChild(name, pid, kill):
                        self._log.info("child_signalled", child=name, pid=pid, kill=kill)
                        self._processes.signal(name, kill=kill)
                    case _:
                        assert_never(effect)
            if self._supervisor.finished:
                self._gone.set()

    def _log_event(self, event: Event) -> None:
        match event:
            case ChildStarted(name, pid, adopted):
                self._log.info("child_started", child=name, pid=pid, adopted=adopted)
            case StartFailed(name, reason):
                self._log.error("child_start_failed", child=name, reason=reason)
            case ChildExited(name, how):
                self._log.warning("child_exited", child=name, how=how)
            case StopAll():
                self._log.info("stopping")
            case ChildAnswered() | SetWanted():
                pass
            case _:
                assert_never(event)

    async def _ask_children(self) -> None:
        """To notice who hangs, and to tell Raft what leased did; a status request asks afresh."""
        begun = time.monotonic()
        while True:
            leased = await self.client.ask_leased_async()
            if not isinstance(leased, Unavailable) or time.monotonic() - begun >= RAFT_WAIT_S:
                self._events.put_nowait(SetWanted("raftd", wanted=True))
            raft = await self.raft.status_async()
            if not isinstance(leased, Unavailable):
                self._events.put_nowait(ChildAnswered("leased"))
            if not isinstance(raft, Unavailable):
                self._events.put_nowait(ChildAnswered("raftd"))
                if not isinstance(leased, Unavailable):
                    await self.relay.look(leased, raft)
            if self.wants_syncd and not isinstance(
                await self.client.ask_syncd_async(), Unavailable
            ):
                self._events.put_nowait(ChildAnswered("syncd"))
            await asyncio.sleep(LOOK_S)

    @property
    def wants_syncd(self) -> bool:
        return self.is_gateway and self.config.sync.enabled

    def decide(self) -> None:
        """Which children should run, and whether this node may forward."""
        if not (self._devices_decided and self.policy_decided):
            return
        if self.policy.foreign != self._foreign_logged:
            self._foreign_logged = self.policy.foreign
            self._log.warning(
                "foreign_chains_found",
                chains=list(self.policy.foreign),
                may_drop=list(self.policy.foreign_drops),
            )
        reason = ""
        if not self.devices.prepared:
            reason = f"the node's devices are not ready: {self.devices.error}"
        self._want("syncd", not reason, reason)
        if self.is_gateway:
            self._set_forwarding(self.policy.in_force)
            if not self.policy.in_force:
                reason = "no policy is in force, and without one this node must not forward"
            elif self._forwarding_error:
                reason = f"forwarding cannot be switched on: {self._forwarding_error}"
        self._want("leased", not reason, reason)

    def _set_forwarding(self, on: bool) -> None:
        if self._forwarding is on:
            return
        try:
            self._parts.set_forwarding(on)
        except HafwError as error:
            self._forwarding_error = str(error)
            return
        self._forwarding, self._forwarding_error = on, ""
        self._log.info("forwarding_set", on=on)

    def _want(self, name: str, wanted: bool, reason: str) -> None:
        if name == "syncd":
            if not self.is_gateway:
                return
            if not self.config.sync.enabled:
                wanted, reason = False, "sync.enabled is false"
        self._events.put_nowait(SetWanted(name, wanted, "" if wanted else reason))

    # ---- devices ---------------------------------------------------------------------------

    async def _keep_devices(self) -> None:
        while True:
            repaired = await self.devices.look()
            if repaired:
                self._mended["devices"] = (time.monotonic(), f"repaired: {repaired}")
            self._devices_decided = True
            self.decide()
            await asyncio.sleep(SETUP_RETRY_S if self.devices.error else LOOK_S)

    # ---- policy ----------------------------------------------------------------------------

    async def _keep_policy(self) -> None:
        if not self.policy.up_to_date():
            await self._load(self.policy.wanted_file)
        self.policy_decided = True
        self.decide()
        tried = time.monotonic()
        # What was loaded by an earlier hafwd is compared at once, and others' chains with it.
        verified = tried if self.policy.loads else tried - POLICY_VERIFY_S
        while True:
            try:
                async with asyncio.timeout(POLICY_LOOK_S):
                    await self._reload.wait()
            except TimeoutError:
                pass
            failed = self.policy.failed_file
            if self._reload.is_set():
                self._reload.clear()
                await self._load(None)
            elif not self.policy.look():
                self._log.error("policy_vanished")
                # The NAT hooks are gone as well: what is forwarded now leaves untranslated.
                self._set_forwarding(False)
                self._mended["policy"] = (
                    time.monotonic(),
                    "somebody removed hafw's nftables tables; not forwarded until loaded again",
                )
                # Not decided until it was tried: a leased stopped now would move the group.
                self.policy_decided = False
                await self._load(self.policy.wanted_file)
            elif not self.policy.in_force and time.monotonic() - tried >= POLICY_RETRY_S:
                await self._load(self.policy.wanted_file)
            elif failed is not None and self.policy.failed_file_changed():
                await self._load(failed)
            else:
                if time.monotonic() - verified >= POLICY_VERIFY_S:
                    await self.policy.verify()
                    verified = time.monotonic()
                self.decide()
                continue
            tried = time.monotonic()
            self.policy_decided = True
            self.decide()

    async def _load(self, file: Path | None) -> None:
        try:
            record = await self.policy.load(file)
        except RefusedError as error:
            self._log.error("policy_load_failed", error=str(error))
            return
        self._log.info(
            "policy_loaded",
            file=record.file,
            hash=record.hash,
            rules=record.rules,
            seconds=record.seconds,
            generation=record.generation,
        )

    # ---- for status ------------------------------------------------------------------------

    def reports(self) -> dict[str, ChildReport]:
        return {r.name: r for r in self._supervisor.reports(now=time.monotonic())}

    def alarms(self) -> list[str]:
        now = time.monotonic()
        alarms = self._supervisor.alarms(now=now)
        if self._unsafe_gate:
            alarms.append("UNSAFE: started with HAFW_UNSAFE_GATE_ALWAYS_PASS: no exclusivity")
        if self.devices.error:
            alarms.append(f"the node's devices cannot be set up: {self.devices.error}")
        alarms += [*self.devices.others, *self.relay.alarms()]
        if self.policy.drift:
            alarms.append(f"policy: {self.policy.drift}")
        if self.policy.foreign_drops:
            chains = "; ".join(self.policy.foreign_drops)
            alarms.append(f"other nftables chains may drop what the policy accepts: {chains}")
        if self._forwarding_error:
            alarms.append(f"forwarding cannot be set: {self._forwarding_error}")
        alarms += [
            f"{text} ({now - since:.0f} s ago)"
            for since, text in self._mended.values()
            if now - since < EVENT_ALARM_S
        ]
        return alarms

    def notes(self) -> list[str]:
        return [f"nftables chain of others: {text}" for text in self.policy.foreign]

    def counters(self) -> dict[str, int]:
        return {
            "devices_repaired": self.devices.repairs,
            "devices_set_up": self.devices.setups,
            "policy_loaded": self.policy.loads,
            "policy_refused": self.policy.failures,
            "policy_vanished": self.policy.vanished,
            "moves_made": self.relay.moved,
            "moves_refused": self.relay.refused,
        }
