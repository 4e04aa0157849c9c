"""How far a pass is."""

from __future__ import annotations

from hafw.messages import SyncPassStatus
from sync.progress import PassProgress


def test_a_pass_is_followed_to_its_end() -> None:
    progress = PassProgress("take", 300, 100.0)
    assert progress.facts(now=100.0) == SyncPassStatus("take", True, 0, 300, 0, 0.0)
    progress.note(100, 90)
    assert progress.facts(now=100.5) == SyncPassStatus("take", True, 100, 300, 90, 200.0)
    progress.note(100, 80)
    progress.end(now=101.0)
    # A hundred had ended since it began; the rate stays what it was.
    assert progress.facts(now=200.0) == SyncPassStatus("take", False, 200, 200, 170, 200.0)


def test_the_kernel_may_show_more_than_was_known() -> None:
    progress = PassProgress("take", 0, 0.0)
    progress.note(100, 0)
    facts = progress.facts(now=1.0)
    assert (facts.done, facts.total) == (100, 100)
