"""What virtual MAC devices a node must have, and what to do about the ones it has. Pure.

A virtual MAC device is a macvlan on a segment's device, one a group and segment, mode private, MAC
00:00:5e:00:01:VRID. It takes in frames, ARP and ND; packets leave by the physical device with the
node's own MAC. Its VIPs are /32 and /128 without duplicate address detection, so no route of it
can catch a packet that is to be forwarded; the virtual link-local is a /64, as every link-local
is, and matters only for packets sent from the device itself.

Order that keeps the gate shut (`plan`): a device that is up without our program on both hooks
goes down first of all; a new one is born down; only a device whose programs were read back goes
up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_interface

from hafw.config.model import ClusterConfig

__all__ = [
    "AddAddress",
    "AddressState",
    "Attach",
    "Create",
    "Delete",
    "DeviceState",
    "ForgetDevice",
    "ForgetGroup",
    "Found",
    "Raise",
    "RemoveAddress",
    "SetDown",
    "Step",
    "VirtualDevice",
    "fits",
    "is_own_device",
    "plan",
    "virtual_devices",
    "virtual_link_local",
]

_OWN_NAME = re.compile(r"^hv\d{1,3}-[a-z][a-z0-9]{0,7}$")
_OWN_MAC = "00:00:5e:00:01:"


def virtual_link_local(mac: str) -> IPv6Address:
    """fe80::/64 with the modified EUI-64 of the MAC (RFC 4291, appendix A), e.g.
    fe80::200:5eff:fe00:101 for 00:00:5e:00:01:01."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + interface)


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """A virtual MAC device as it must be."""

    name: str
    group: str
    group_index: int
    segment: str
    parent: str
    mac: str
    vips: tuple[IPv4Address | IPv6Address, ...]

    @property
    def link_local(self) -> IPv6Address:
        return virtual_link_local(self.mac)

    @property
    def addresses(self) -> frozenset[str]:
        """``address/prefix``: the VIPs, and the virtual link-local if one is IPv6."""
        vips = {str(ip_interface(vip)) for vip in self.vips}
        if any(vip.version == 6 for vip in self.vips):
            vips.add(str(IPv6Interface((self.link_local, 64))))
        return frozenset(vips)


@dataclass(frozen=True, slots=True)
class AddressState:
    """An address the kernel holds. `settled`: neither tentative nor found to be a duplicate."""

    text: str
    settled: bool


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device as the kernel has it. `kind` is empty for hardware; `mode` that of a macvlan."""

    name: str
    ifindex: int
    up: bool
    mac: str
    kind: str
    mode: str
    parent_ifindex: int
    addresses: tuple[AddressState, ...] = ()


def virtual_devices(config: ClusterConfig, node_name: str) -> list[VirtualDevice]:
    """The devices of a node: one for each segment of each group it is a candidate for."""
    node = config.nodes[node_name]
    return [
        VirtualDevice(
            name=group.device(segment),
            group=name,
            group_index=group.index,
            segment=segment,
            parent=node.segments[segment].device,
            mac=group.virtual_mac,
            vips=tuple(vips),
        )
        for name, group in sorted(config.groups.items())
        if node_name in group.order
        for segment, vips in sorted(group.vips.items())
    ]


def is_own_device(device: DeviceState) -> bool:
    """Made by hafw: name, kind and MAC prefix agree."""
    return (
        device.kind == "macvlan"
        and _OWN_NAME.match(device.name) is not None
        and device.mac.startswith(_OWN_MAC)
    )


def fits(want: VirtualDevice, have: DeviceState, parent_ifindex: int) -> bool:
    """The device is the wanted one (addresses, gate and up or down aside)."""
    return (have.kind, have.mode, have.mac, have.parent_ifindex) == (
        "macvlan",
        "private",
        want.mac,
        parent_ifindex,
    )


# ---- steps, in the order they must be done ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetDown:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Delete:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ForgetDevice:
    """Remove the pins of a device that is gone and not wanted."""

    name: str


@dataclass(frozen=True, slots=True)
class Create:
    """Born down, with its MAC: changing the MAC later takes 10 ms."""

    device: VirtualDevice


@dataclass(frozen=True, slots=True)
class Attach:
    """Both programs, then read back."""

    device: VirtualDevice


@dataclass(frozen=True, slots=True)
class Raise:
    """Only after the programs were read back."""

    device: VirtualDevice


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class AddAddress:
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class ForgetGroup:
    """Remove the programs of a group that has no device here."""

    group_index: int


Step = (
    SetDown
    | Delete
    | ForgetDevice
    | Create
    | Attach
    | Raise
    | RemoveAddress
    | AddAddress
    | ForgetGroup
)


@dataclass(frozen=True, slots=True)
class Found:
    """What is there now. `gated` names the devices with the right programs on both hooks;
    `parents` gives the interface index of a segment's device."""

    devices: tuple[DeviceState, ...]
    parents: dict[str, int]
    gated: frozenset[str]
    pinned_devices: tuple[str, ...]
    pinned_groups: tuple[int, ...]


def plan(wanted: list[VirtualDevice], found: Found) -> list[Step]:
    """From what is there to what must be; empty if nothing is to be done.

    A device that is right, gated and up is not touched, so an ACTIVE node loses no packet.
    """
    by_name = {device.name: device for device in wanted}
    kept: dict[str, DeviceState] = {}
    down: list[Step] = []
    delete: list[Step] = []
    for have in sorted(found.devices, key=lambda device: device.name):
        want = by_name.get(have.name)
        reason = None
        if want is not None:
            if fits(want, have, found.parents[want.parent]):
                kept[have.name] = have
                if have.up and have.name not in found.gated:
                    down.append(SetDown(have.name, "up without our program on both hooks"))
                continue
            reason = "not as the configuration says"
        elif is_own_device(have):
            reason = "no longer configured"
        elif have.kind == "macvlan" and _claims(have, wanted, found.parents):
            reason = "has a virtual MAC of ours under another name"
        if reason is not None:
            if have.up:
                down.append(SetDown(have.name, reason))
            delete.append(Delete(have.name, reason))
    steps = down + delete
    steps += [ForgetDevice(name) for name in found.pinned_devices if name not in by_name]
    for device in wanted:
        steps += _steps_for(device, kept.get(device.name), device.name in found.gated)
    groups = {device.group_index for device in wanted}
    return steps + [ForgetGroup(index) for index in found.pinned_groups if index not in groups]


def _claims(have: DeviceState, wanted: list[VirtualDevice], parents: dict[str, int]) -> bool:
    return any(
        have.mac == want.mac and have.parent_ifindex == parents[want.parent] for want in wanted
    )


def _steps_for(want: VirtualDevice, have: DeviceState | None, gated: bool) -> list[Step]:
    steps: list[Step] = []
    if have is None:
        steps.append(Create(want))
    if have is None or not gated:
        steps.append(Attach(want))
    stays_up = have is not None and have.up and gated
    if not stays_up:
        steps.append(Raise(want))
    # Taking a device down drops its IPv6 addresses, so those are added afresh after that.
    there = {a.text: a for a in have.addresses} if have is not None else {}
    wrong = {text for text, a in there.items() if text not in want.addresses or not a.settled}
    steps += [RemoveAddress(want.name, text) for text in sorted(wrong)]
    right = set(there) - wrong
    if not stays_up:
        right = {text for text in right if ":" not in text}
    return steps + [AddAddress(want.name, text) for text in sorted(want.addresses - right)]
