"""The flows that are measured with, and the arithmetic of the figures."""

from __future__ import annotations

import pytest

from hafw.errors import RefusedError
from hafw.lab.bench_sync import parse_parts
from hafw.lab.bench_sync_parts import per_flow_us
from hafw.lab.bench_tools import bench_flow, flow_requests
from sync.ctnetlink import build_create


@pytest.mark.parametrize("replica", [False, True])
def test_requests_are_what_the_builder_builds(replica: bool) -> None:
    for number, request in enumerate(flow_requests(50_200, owner=2, replica=replica)):
        if number % 997 == 0 or number in (49_999, 50_000, 50_199):
            assert request == build_create(bench_flow(number, owner=2), pristine=replica), number


def test_no_two_flows_share_a_tuple() -> None:
    flows = [bench_flow(number) for number in range(49_900, 50_400)]
    assert len({flow.key for flow in flows}) == len({flow.reply for flow in flows}) == len(flows)


def test_idle_time_is_taken_off() -> None:
    # 1 s of CPU in 10 s, of which an idle daemon would have used 0.3 s; 100,000 flows.
    assert per_flow_us(1e9, 3e7, 10.0, 100_000) == pytest.approx(7.0)
    assert per_flow_us(1e9, 0.0, 10.0, 100_000) == pytest.approx(10.0)


@pytest.mark.parametrize("text", [",", " , ", " "])
def test_parts_without_a_name_are_refused_and_not_taken_for_all(text: str) -> None:
    with pytest.raises(RefusedError, match="names no part"):
        parse_parts(text)
    assert parse_parts("") == []
    assert parse_parts("cpu, rate,") == ["cpu", "rate"]
