"""SIP through a power cut and through there-and-back, by SIPp: INVITE before the fault, RTP that
begins after it, both ways, BYE afterwards; and a call to a telephone that registered before it.

What must fail without its part of the replication, and there-and-back, is in `make test-all`.
"""

from __future__ import annotations

import signal
from itertools import product
from pathlib import Path

import pytest

from hafw.flow import FlowKey
from tests.integration.helper_world import INSIDE, OUTSIDE, VIP, HelperWorld, helper_world
from tests.integration.sip_calls import (
    CALLEE_PORT,
    CALLER_PORT,
    RTP_PACKETS_MIN,
    Sipp,
    callee,
    caller,
    registrar,
    telephone,
)
from tests.integration.syncd_world import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

EXPECTED_PER_CALL = 4
"""RTP and RTCP, each way."""


def answered_and_frozen(sipp: Sipp) -> None:
    """Four calls: through SNAT and DNAT, IPv4 and IPv6."""
    first = sipp.world.cluster[1].kernel
    for number, call in enumerate(product(("snat", "dnat"), (4, 6)), 1):
        sipp.call(*call)
        wait_for(
            lambda: f"expectations of the calls: {len(first.dump_expectations())}",
            lambda: len(first.dump_expectations()) == number * EXPECTED_PER_CALL,  # noqa: B023
        )
        sipp.signal(signal.SIGSTOP, latest=2)
    assert not any(sipp.rtp().values()), "RTP came before the fault"
    sipp.world.replicated()


def adjustments(world: HelperWorld, number: int) -> dict[FlowKey, object]:
    return {k: e.seqadj for k, e in world.cluster[number].table().items() if e.helper == "sip"}


def test_sip_over_tcp_is_followed_also_where_it_expects_nothing(tmp_path: Path) -> None:
    """Each message changes the length, the late ACK too; BYE goes by what was changed before."""
    with helper_world() as world, Sipp(world, tmp_path / "sipp") as sipp:
        first = world.cluster[1].kernel
        for number, version in enumerate((4, 6), 1):
            sipp.call("snat", version, tcp=True)
            wait_for(
                lambda: f"answered: {len(first.dump_expectations())} {sipp.errors()}",
                lambda: len(first.dump_expectations()) == number * EXPECTED_PER_CALL,  # noqa: B023
            )
            before = adjustments(world, 1)
            wait_for("the ACK is rewritten", lambda: adjustments(world, 1) != before)  # noqa: B023
            sipp.signal(signal.SIGSTOP, latest=2)
        wait_for("the peer knows", lambda: adjustments(world, 2) == adjustments(world, 1), 3)
        world.replicated()
        world.power_cut()
        sipp.signal(signal.SIGCONT)
        assert sipp.ended() == [0] * 4, sipp.errors()
        rtp = sipp.rtp()
        for version in (4, 6):
            assert rtp[f"inside v{version}_{CALLER_PORT}"] >= RTP_PACKETS_MIN, rtp
            assert rtp[f"outside v{version}_{CALLEE_PORT}"] >= RTP_PACKETS_MIN, rtp


def no_expectation_left(world: HelperWorld, number: int) -> None:
    kernel = world.cluster[number].kernel
    wait_for("BYE ends what is expected", lambda: not kernel.dump_expectations())


def test_calls_answered_before_a_power_cut_have_media_after_it(tmp_path: Path) -> None:
    with helper_world() as world, Sipp(world, tmp_path / "sipp") as sipp:
        answered_and_frozen(sipp)
        world.power_cut()
        sipp.signal(signal.SIGCONT)
        assert sipp.ended() == [0] * 8, sipp.errors()
        assert min(sipp.rtp().values()) >= RTP_PACKETS_MIN, sipp.rtp()
        no_expectation_left(world, 2)


@pytest.mark.long
def test_calls_have_media_after_there_and_back(tmp_path: Path) -> None:
    with helper_world() as world, Sipp(world, tmp_path / "sipp") as sipp:
        answered_and_frozen(sipp)
        world.move(2, 2)
        world.replicated(2)
        world.move(1, 3)
        sipp.signal(signal.SIGCONT)
        assert sipp.ended() == [0] * 8, sipp.errors()
        assert min(sipp.rtp().values()) >= RTP_PACKETS_MIN, sipp.rtp()
        no_expectation_left(world, 1)
        no_expectation_left(world, 2)


@pytest.mark.long
def test_without_expectations_they_are_silent(tmp_path: Path) -> None:
    with helper_world(forgets="expectations") as world, Sipp(world, tmp_path / "sipp") as sipp:
        answered_and_frozen(sipp)
        world.power_cut()
        sipp.signal(signal.SIGCONT)
        sipp.ended()
        assert set(sipp.rtp().values()) == {0}, sipp.rtp()


def called_after_the_cut(folder: Path, forgets: str) -> tuple[list[int], dict[str, int]]:
    """A telephone of each family registers outside, the node dies, then it is called from another
    port than the registrar's: only by the expectation that REGISTER made does the call come in."""
    with helper_world(forgets=forgets) as world, Sipp(world, folder) as sipp:
        for version in (4, 6):
            target = f"[{OUTSIDE[6]}]" if version == 6 else OUTSIDE[4]
            far, near = OUTSIDE[version], INSIDE[version]
            sipp.start(world.outside, registrar(), far, 5060, 6500, "-m", "1")
            sipp.wait_bound(world.outside, far, 5060)
            aim = f"{target}:5060"
            sipp.start(world.inside, telephone(), near, 5061, 6600, "-m", "1", aim)
        assert sipp.ended() == [0] * 4, sipp.errors()
        wait_for("looked up", lambda: active(world, 1) == 2)
        if not forgets:
            wait_for("the peer has it active", lambda: active(world, 2) == 2)
        world.replicated()
        world.power_cut()
        calls = []
        for version in (4, 6):
            target = f"[{VIP[6]}]" if version == 6 else VIP[4]
            far, near = OUTSIDE[version], INSIDE[version]
            text, media = callee(sipp.folder), CALLEE_PORT
            sipp.start(world.inside, text, near, 5061, media, "-m", "1")
            sipp.wait_bound(world.inside, near, 5061)
            text, media, aim = caller(sipp.folder, 900), CALLER_PORT, f"{target}:5061"
            more = ("-m", "1", "-recv_timeout", "1500", aim)
            calls.append(sipp.start(world.outside, text, far, 5070, media, *more))
        return [call.wait(25) for call in calls], sipp.rtp()


def active(world: HelperWorld, number: int) -> int:
    found = world.cluster[number].kernel.dump_expectations()
    # NF_CT_EXPECT_PERMANENT, and not INACTIVE.
    return sum(one.flags == 1 and one.timeout_s > 500 for one in found)


def test_a_registered_telephone_is_called_after_a_power_cut(tmp_path: Path) -> None:
    codes, rtp = called_after_the_cut(tmp_path / "sipp", "")
    assert codes == [0, 0]
    for version in (4, 6):
        assert rtp[f"inside v{version}_{CALLEE_PORT}"] >= RTP_PACKETS_MIN, rtp
        assert rtp[f"outside v{version}_{CALLER_PORT}"] >= RTP_PACKETS_MIN, rtp


@pytest.mark.long
@pytest.mark.parametrize("forgets", ["activity", "expectations"])
def test_without_its_expectation_it_is_not(tmp_path: Path, forgets: str) -> None:
    codes, rtp = called_after_the_cut(tmp_path / "sipp", forgets)
    assert 0 not in codes
    assert set(rtp.values()) == {0}, rtp
