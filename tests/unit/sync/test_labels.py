"""When the kernel is asked whether the node sets labels, and what an unclear answer changes."""

from __future__ import annotations

from sync.labels import ASK_S, LabelWatch


def test_the_kernel_is_asked_at_once_then_now_and_then() -> None:
    answers: list[bool | None] = [True, None, False]
    watch = LabelWatch(lambda: answers.pop(0))
    assert watch.node_sets_any(now=100.0)
    assert watch.node_sets_any(now=100.0 + ASK_S / 2)
    assert len(answers) == 2
    assert watch.node_sets_any(now=100.0 + ASK_S), "a full table does not tell"
    assert not watch.node_sets_any(now=100.0 + 2 * ASK_S)
