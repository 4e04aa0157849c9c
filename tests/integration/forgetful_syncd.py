"""A syncd that says nothing of expectations or sequence adjustment: what the tests must notice.

``HAFW_TEST_FORGETS`` names what is left out: ``expectations``, ``seqadj``, or ``activity`` (that
an expectation has become active).
``HAFW_TEST_TAKE_PER_S`` is another pace of adoption. ``HAFW_TEST_STRICT``: replicas of TCP are
made strict (with the reference codec). ``HAFW_TEST_HOLD_S`` and ``HAFW_TEST_REFRESH_S`` are in the
place of the configuration's.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hafw import daemon_main
from hafw.config.model import ClusterConfig
from hafw.flow import EXPECT_INACTIVE, TcpState
from sync import ctnetlink_build, daemon, holder
from sync.delta import Delta, ExpectDestroy, ExpectUpsert, Upsert
from sync.outbox import Outbox

FORGOTTEN = os.environ.get("HAFW_TEST_FORGETS", "").split()
_put = Outbox.put
_load = daemon_main.load_cluster  # type: ignore[attr-defined]


def _forgetful_put(outbox: Outbox, delta: Delta) -> None:
    if isinstance(delta, ExpectUpsert | ExpectDestroy) and "expectations" in FORGOTTEN:
        return
    if isinstance(delta, ExpectUpsert) and "activity" in FORGOTTEN:
        inactive = delta.expectation.flags | EXPECT_INACTIVE
        delta = replace(delta, expectation=replace(delta.expectation, flags=inactive))
    if isinstance(delta, Upsert) and "seqadj" in FORGOTTEN:
        delta = replace(delta, entry=replace(delta.entry, seqadj=None))
    _put(outbox, delta)


def _loaded(config_file: Path) -> ClusterConfig:
    config = _load(config_file)
    changes = {
        name: int(os.environ[f"HAFW_TEST_{name.upper()}"])
        for name in ("hold_s", "refresh_s")
        if f"HAFW_TEST_{name.upper()}" in os.environ
    }
    # Not validated: a test has no time for the least that a configuration may say.
    return config.model_copy(update={"sync": config.sync.model_copy(update=changes)})


def _left_as_it_is(tcp: TcpState) -> TcpState:
    return tcp


if __name__ == "__main__":
    if os.environ.get("HAFW_TEST_STRICT"):
        ctnetlink_build._pristine = _left_as_it_is
    holder.TAKE_ENTRIES_PER_S = int(
        os.environ.get("HAFW_TEST_TAKE_PER_S", holder.TAKE_ENTRIES_PER_S)
    )
    holder.REFRESH_ENTRIES_PER_S = int(
        os.environ.get("HAFW_TEST_REFRESH_PER_S", holder.REFRESH_ENTRIES_PER_S)
    )
    Outbox.put = _forgetful_put  # type: ignore[method-assign, assignment]
    daemon_main.load_cluster = _loaded  # type: ignore[attr-defined, assignment]
    daemon.main()
