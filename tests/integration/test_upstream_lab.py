"""Upstream checks that nobody answers. That a dead segment moves its group is a row of
`test_failures.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from hafw.lab.faults import Sight, wait_until
from hafw.lab.lab import Lab
from tests.integration.own_lab import own_lab

pytestmark = [
    pytest.mark.integration, pytest.mark.alone, pytest.mark.long, pytest.mark.timeout(180),
]  # fmt: skip
CLIENT = "192.0.2.10"
ALARM = "group 1: the upstream check of segment lan fails"
LOOK_S = 3.0


@pytest.fixture(scope="module")
def lab(lab_alone: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    check = f"    upstream: {{lan: {{address: {CLIENT}}}}}"
    with own_lab(tmp_path_factory.mktemp("lab"), check) as lab:
        yield lab


def alarmed(sight: Sight, nodes: tuple[str, ...]) -> list[bool]:
    return [ALARM in sight.leased_alarms(node) for node in nodes]


def mute(lab: Lab, on: bool) -> None:
    command = f"echo {int(on)} > /proc/sys/net/ipv4/icmp_echo_ignore_all"
    with lab.spawn("client", ["sh", "-c", command]) as done:
        assert done.wait(5) == 0


def test_a_router_that_answers_nobody_moves_nothing(lab: Lab) -> None:
    sight = Sight(lab)
    before = sight.holder()
    mute(lab, True)
    try:
        assert wait_until(10, lambda: all(alarmed(sight, lab.gateways)))
        time.sleep(LOOK_S)
        assert sight.holder() == before
    finally:
        mute(lab, False)
    assert wait_until(10, lambda: not any(alarmed(sight, lab.gateways)))
    time.sleep(LOOK_S)
    assert sight.holder() == before
