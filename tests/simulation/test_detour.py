"""The stream where links stay dead and a segment is left; and the mistakes that this catches."""

from __future__ import annotations

import pytest

from sync.detour import Detour
from tests.simulation.detour_world import DetourWorld
from tests.simulation.timeline import CheckFailed

SEEDS = 60
SEEDS_TO_CATCH = 20


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_receiver_gets_all_over_the_segment(seed: int) -> None:
    DetourWorld(seed).run()


class LinksAlone(Detour):
    """A dead link is waited for."""

    @property
    def away(self) -> dict[int, str]:
        return {}


class DeafnessUnsaid(Detour):
    """Nobody is told that he is not heard: his end of the link works."""

    @property
    def deaf(self) -> list[int]:
        return []


class QuestionsByLinks(Detour):
    """Who is not heard over a segment yet is not asked over it either."""

    @property
    def away(self) -> dict[int, str]:
        return {peer: over for peer, over in super().away.items() if over}


@pytest.mark.parametrize("mistake", [LinksAlone, DeafnessUnsaid, QuestionsByLinks])
def test_a_planted_mistake_is_caught(mistake: type[Detour]) -> None:
    for seed in range(SEEDS_TO_CATCH):
        try:
            DetourWorld(seed, detour=mistake).run()
        except CheckFailed:
            DetourWorld(seed).run()
            return
    pytest.fail("the planted mistake was not caught")
