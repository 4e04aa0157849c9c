"""What a kernel or a process lacks, in words: every branch, with other answers in place of the
kernel's."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from hafw.errors import KernelError, StateError
from hafw.kernel.features import Probes, missing_features
from hafw.lab import machine

ALL = (1 << 41) - 1
NET_ADMIN, BPF = 12, 39
NF_TABLES_GETGEN, CTNETLINK_GET_STATS, RTM_NEWLINK = 10 << 8 | 16, 1 << 8 | 5, 16


def answers(**refused: int) -> Probes:
    """A kernel with everything, but for the errnos given by request."""
    kinds = {
        "nf_tables": NF_TABLES_GETGEN,
        "conntrack": CTNETLINK_GET_STATS,
        "macvlan": RTM_NEWLINK,
    }
    codes = {kinds[name]: code for name, code in refused.items()}

    def netlink(_protocol: int, kind: int, _flags: int, _body: bytes) -> int:
        # A macvlan without a device to sit on is EINVAL where macvlan is known.
        return codes.get(kind, errno.EINVAL if kind == RTM_NEWLINK else 0)

    return Probes(lambda: ALL, lambda: None, lambda: True, netlink)


def test_nothing_is_missing() -> None:
    assert missing_features("gateway", answers()) == []
    assert missing_features("witness", answers()) == []


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ({"nf_tables": errno.EINVAL}, "modprobe nf_tables"),
        ({"conntrack": errno.EINVAL}, "modprobe nf_conntrack_netlink"),
        ({"macvlan": errno.EOPNOTSUPP}, "modprobe macvlan"),
    ],
)
def test_each_netlink_feature_names_its_remedy(refused: dict[str, int], said: str) -> None:
    (line,) = missing_features("gateway", answers(**refused))
    assert said in line


def test_all_that_is_missing_comes_at_once() -> None:
    bare = replace(
        answers(nf_tables=errno.EINVAL, conntrack=errno.EINVAL, macvlan=errno.EOPNOTSUPP),
        tcx=lambda: False,
    )
    assert len(missing_features("gateway", bare)) == 4


def test_an_old_kernel_is_told_by_its_hook() -> None:
    (line,) = missing_features("gateway", replace(answers(), tcx=lambda: False))
    assert "Linux 6.6 or newer with CONFIG_NET_XGRESS is needed" in line


def test_without_arrays_the_hook_is_not_asked() -> None:
    def refuse() -> None:
        raise KernelError(errno.ENOSYS, "a BPF array", "hafw_probe")

    probes = replace(answers(), make_array=refuse, tcx=lambda: pytest.fail("asked"))
    (line,) = missing_features("gateway", probes)
    assert "CONFIG_BPF_SYSCALL" in line
    assert "ENOSYS" in line


def test_missing_rights_are_all_that_is_said() -> None:
    bare = Probes(
        lambda: ALL & ~(1 << BPF) & ~(1 << NET_ADMIN),
        lambda: pytest.fail("asked"),
        lambda: pytest.fail("asked"),
        lambda *_: pytest.fail("asked"),
    )
    (line,) = missing_features("gateway", bare)
    assert line.startswith("this process lacks CAP_NET_ADMIN, CAP_BPF: run it as root")
    (line,) = missing_features("witness", bare)
    assert line.startswith("this process lacks CAP_NET_ADMIN: run it as root")


def test_a_witness_needs_no_gate() -> None:
    bare = replace(answers(nf_tables=errno.EINVAL), tcx=lambda: False)
    assert missing_features("witness", bare) == []


def test_a_lab_on_such_a_machine_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: f"/bin/{tool}")
    monkeypatch.setattr(machine, "in_private_mount_namespace", lambda: False)
    monkeypatch.setattr(machine, "missing_features", lambda _role: ["no tcx", "no macvlan"])
    with pytest.raises(StateError) as refusal:
        machine.require_machine()
    assert str(refusal.value) == "this machine cannot carry a gateway: no tcx; no macvlan"
