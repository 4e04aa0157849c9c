"""What the kernel shells say when something is not there; no root needed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from hafw.errors import KernelError, StateError
from hafw.kernel import netns, nft_chains, sysctl


def test_a_missing_sysctl_names_the_key_and_what_it_needs() -> None:
    with pytest.raises(KernelError, match=r"net/netfilter/no_such: ENOENT; .*nf_conntrack"):
        sysctl.read("net/netfilter/no_such")
    with pytest.raises(KernelError, match=r"conf/no_such_device/rp_filter.* device must be there"):
        sysctl.differences(sysctl.device_sysctls(sysctl.PHYSICAL, "no_such_device")[2:3])


def test_virtual_devices_are_held_to_more_than_physical_ones() -> None:
    physical = {s.key for s in sysctl.device_sysctls(sysctl.PHYSICAL, "eth0")}
    virtual = {s.key for s in sysctl.device_sysctls(sysctl.VIRTUAL, "eth0")}
    assert physical < virtual
    assert "net/ipv6/conf/eth0/addr_gen_mode" in virtual - physical
    assert all("{}" not in key for key in virtual)


def test_every_sysctl_gives_its_reason_and_none_switches_forwarding_on() -> None:
    for setting in (*sysctl.GATEWAY, *sysctl.PHYSICAL, *sysctl.VIRTUAL):
        assert setting.why
        assert "forward" not in setting.key


def test_a_network_namespace_that_is_not_there(tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    before = netns.inode()
    missing = tmp_path / "none"
    with pytest.raises(StateError, match="none: No such file"), netns.entered(missing):
        pass
    assert netns.inode() == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_something_that_is_no_network_namespace(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(KernelError, match="entering a network namespace"), netns.entered(plain):
        pass


@pytest.mark.parametrize(
    ("name", "code", "drops"),
    [("queue", None, True), ("reject", None, True), ("counter", None, False)]
    + [("immediate", code, code in (0, 3, 0x50003)) for code in (-5, -1, 0, 1, 3, 0x50003)],
)
def test_which_expressions_can_drop(name: str, code: int | None, drops: bool) -> None:
    """Verdicts as linux/netfilter.h numbers them; NF_QUEUE has its queue in the upper half."""
    fields = {}
    if code is not None:
        verdict = struct.pack("=HH", 8, 1) + struct.pack("!i", code)
        fields[2] = struct.pack("=HH", 4 + len(verdict), 2) + verdict
    assert nft_chains._verdict(name, fields) == (drops, "")
