"""The plan carried out on a model of the kernel: it converges, and no device is ever up without
its gate because of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.vmac import (
    AddAddress,
    AddressState,
    Attach,
    Create,
    Delete,
    DeviceState,
    ForgetDevice,
    ForgetGroup,
    Found,
    Raise,
    RemoveAddress,
    SetDown,
    Step,
    VirtualDevice,
    plan,
    virtual_link_local,
)

PARENTS = {"lan0": 2, "wan0": 3}
LAN = VirtualDevice(
    "hv1-lan",
    "main",
    1,
    "lan",
    "lan0",
    "00:00:5e:00:01:01",
    (IPv4Address("192.0.2.254"), IPv6Address("2001:db8:1::fe")),
)
WAN = replace(
    LAN, name="hv1-wan", segment="wan", parent="wan0", vips=(IPv4Address("198.51.100.254"),)
)
OTHER = replace(LAN, name="hv9-lan", group="other", group_index=2, mac="00:00:5e:00:01:09")


def right(device: VirtualDevice, ifindex: int = 10) -> DeviceState:
    return DeviceState(
        name=device.name,
        ifindex=ifindex,
        up=True,
        mac=device.mac,
        kind="macvlan",
        mode="private",
        parent_ifindex=PARENTS[device.parent],
        addresses=tuple(AddressState(text, settled=True) for text in sorted(device.addresses)),
    )


def found(*devices: DeviceState, gated: set[str] | None = None, **pins: tuple[str, ...]) -> Found:
    names = {device.name for device in devices}
    return Found(
        devices=devices,
        parents=PARENTS,
        gated=frozenset(names if gated is None else gated),
        pinned_devices=pins.get("pinned", tuple(sorted(names))),
        pinned_groups=(1,),
    )


@dataclass
class Kernel:
    """Carries steps out and refuses what the real one or the rule refuses."""

    state: Found

    def carry_out(self, step: Step) -> None:
        devices = {device.name: device for device in self.state.devices}
        gated, pinned = set(self.state.gated), set(self.state.pinned_devices)
        groups = set(self.state.pinned_groups)
        match step:
            case SetDown(name):
                kept = tuple(a for a in devices[name].addresses if ":" not in a.text)
                devices[name] = replace(devices[name], up=False, addresses=kept)
            case Delete(name):
                assert not devices[name].up, "deleted while up"
                del devices[name]
                gated.discard(name)
            case ForgetDevice(name):
                assert name not in gated or not devices[name].up, "unpinned while up"
                gated.discard(name)
                pinned.discard(name)
            case Create(device):
                assert device.name not in devices
                # drivers/net/macvlan.c, macvlan_addr_busy: one up macvlan a MAC and parent.
                assert not any(
                    (d.kind, d.up, d.mac, d.parent_ifindex)
                    == ("macvlan", True, device.mac, PARENTS[device.parent])
                    for d in devices.values()
                ), "MAC twice"
                devices[device.name] = replace(right(device), up=False, addresses=())
            case Attach(device):
                assert not devices[device.name].up, "attached to a device that is up"
                gated.add(device.name)
                pinned.add(device.name)
                groups.add(device.group_index)
            case Raise(device):
                assert device.name in gated, "raised without its gate"
                devices[device.name] = replace(devices[device.name], up=True)
            case RemoveAddress(name, address):
                left = tuple(a for a in devices[name].addresses if a.text != address)
                devices[name] = replace(devices[name], addresses=left)
            case AddAddress(name, address):
                left = tuple(a for a in devices[name].addresses if a.text != address)
                added = (*left, AddressState(address, settled=True))
                devices[name] = replace(devices[name], addresses=added)
            case ForgetGroup(index):
                groups.discard(index)
            case _:
                assert_never(step)
        self.state = Found(
            tuple(devices.values()),
            PARENTS,
            frozenset(gated),
            tuple(sorted(pinned)),
            tuple(sorted(groups)),
        )


def unguarded(state: Found) -> list[str]:
    return [
        d.name
        for d in state.devices
        if d.up and d.name not in state.gated and d.mac.startswith("00:00:5e:00:01:")
    ]


ADDRESSES = st.lists(
    st.builds(
        AddressState,
        st.sampled_from([*sorted(LAN.addresses), "192.0.2.99/32", "2001:db8::99/128"]),
        st.booleans(),
    ),
    max_size=4,
    unique_by=lambda address: address.text,
).map(tuple)
DEVICES = st.lists(
    st.builds(
        DeviceState,
        name=st.sampled_from(["hv1-lan", "hv1-wan", "hv9-lan", "hv3-old", "foreign"]),
        ifindex=st.integers(10, 20),
        up=st.booleans(),
        mac=st.sampled_from([LAN.mac, OTHER.mac, "00:00:5e:00:01:03"]),
        kind=st.sampled_from(["macvlan", "macvlan", "veth"]),
        mode=st.sampled_from(["private", "private", "bridge"]),
        parent_ifindex=st.sampled_from([2, 3]),
        addresses=ADDRESSES,
    ),
    max_size=4,
    unique_by=lambda device: device.name,
)
WANTED = st.lists(st.sampled_from([LAN, WAN, OTHER]), unique=True, max_size=3)


@given(WANTED, DEVICES, st.sets(st.sampled_from(["hv1-lan", "hv1-wan", "hv9-lan", "hv3-old"])))
def test_whatever_is_there_the_plan_converges_and_opens_nothing(
    wanted: list[VirtualDevice], devices: list[DeviceState], gated: set[str]
) -> None:
    # The gate only ever sits on a macvlan; a pin may have outlived its device. A wanted name
    # that another kind of device has is refused before any plan is made.
    names = {device.name for device in wanted}
    devices = [d for d in devices if d.kind == "macvlan" or d.name not in names]
    sits = gated & {device.name for device in devices if device.kind == "macvlan"}
    start = found(*devices, gated=sits, pinned=tuple(sorted(gated)))
    ours = {device.name for device in wanted}
    kernel = Kernel(start)
    steps = plan(wanted, start)
    open_names = set(unguarded(start))
    for place, step in enumerate(steps):
        kernel.carry_out(step)
        now_open = set(unguarded(kernel.state))
        assert now_open <= open_names, f"{step} opened {now_open - open_names}"
        if not isinstance(step, SetDown):
            assert not any(isinstance(later, SetDown) for later in steps[place:]), "down is first"
            assert not now_open & ours, f"{step} came before {now_open & ours} was shut"
        open_names = now_open
    assert plan(wanted, kernel.state) == []
    for device in wanted:
        state = next(d for d in kernel.state.devices if d.name == device.name)
        assert state.up
        assert {a.text for a in state.addresses} == device.addresses


def test_a_right_node_is_left_alone() -> None:
    assert plan([LAN, WAN], found(right(LAN), right(WAN))) == []


def test_a_vip_that_is_no_longer_configured_goes_and_nothing_else_happens() -> None:
    smaller = replace(LAN, vips=LAN.vips[1:])
    assert plan([smaller], found(right(LAN))) == [RemoveAddress("hv1-lan", "192.0.2.254/32")]


def test_an_up_device_without_its_gate_goes_down_before_anything_else() -> None:
    steps = plan([LAN, WAN], found(right(LAN), gated=set()))
    assert steps[0] == SetDown("hv1-lan", "up without our program on both hooks")


def test_a_renamed_device_is_removed_before_its_name_is_made_again() -> None:
    renamed = replace(right(LAN), name="mine")
    steps = plan([LAN], found(renamed, gated=set()))
    kinds = [type(step) for step in steps]
    assert kinds[:2] == [SetDown, Delete]
    assert kinds.index(Create) < kinds.index(Attach) < kinds.index(Raise)


def test_other_people_s_devices_are_not_touched() -> None:
    tap = DeviceState("tap0", 9, True, "02:00:00:00:00:01", "tun", "", 0)
    macvlan = DeviceState("mv0", 11, True, "02:00:00:00:00:02", "macvlan", "private", 2)
    vrrp = DeviceState("vrrp.51", 12, True, "00:00:5e:00:01:33", "macvlan", "private", 2)
    assert plan([LAN], found(right(LAN), tap, macvlan, vrrp, gated={"hv1-lan"}, pinned=())) == []


@pytest.mark.parametrize(
    ("mac", "expected"),
    [
        ("00:00:5e:00:01:01", "fe80::200:5eff:fe00:101"),
        ("00:00:5e:00:01:ff", "fe80::200:5eff:fe00:1ff"),
    ],
)
def test_virtual_link_local(mac: str, expected: str) -> None:
    assert virtual_link_local(mac) == IPv6Address(expected)
