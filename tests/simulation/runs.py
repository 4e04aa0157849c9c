"""What simulations by seeded schedules share: replay, planted mistakes, long runs."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from tests.simulation.lease_node import MS, ViolationError

__all__ = ["Simulation", "collected_by_hand", "patched"]

COLLECT_EVERY = 100


class Run(Protocol):
    """A world that a schedule runs."""

    now: int
    trace: list[str] | None


W = TypeVar("W", bound=Run)
W_co = TypeVar("W_co", bound=Run, covariant=True)


class Scheduled(Protocol[W_co]):
    """Faults of one seed."""

    @property
    def world(self) -> W_co: ...

    def run(self) -> object: ...


@contextmanager
def patched(owner: object, name: str, value: object) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextmanager
def collected_by_hand() -> Iterator[None]:
    """A third of the time would go into looking for garbage in worlds that live for 10 ms."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@dataclass(frozen=True)
class Simulation(Generic[W]):
    """Schedules by seed, and the mistakes that their checkers must catch."""

    module: str
    schedule: Callable[[int, str | None], Scheduled[W]]
    planted: Callable[[str | None, W], AbstractContextManager[None]]
    mistakes: Mapping[str, str]
    focus: Mapping[str, tuple[str, ...]]
    """Kinds of faults that together reach a mistake sooner than the whole mix does."""

    def focus_of(self, mistake: str) -> str | None:
        return mistake if mistake in self.focus else None

    def replay_line(self, seed: int, mistake: str | None = None, focus: str | None = None) -> str:
        extra = f" --focus {focus}" if focus else ""
        extra += f" --mistake {mistake}" if mistake else ""
        return f"python -m tests.simulation.{self.module} --seed {seed}{extra}"

    def run_seed(self, seed: int, mistake: str | None = None, focus: str | None = None) -> W:
        """Run one schedule. Raises ViolationError whose text ends with the replay line."""
        schedule = self.schedule(seed, focus)
        with self.planted(mistake, schedule.world):
            try:
                schedule.run()
            except AssertionError as error:
                at = f"at {schedule.world.now / MS:.3f} ms"
                raise ViolationError(
                    f"seed {seed} {at}: {error!r}; {self.replay_line(seed, mistake, focus)}"
                ) from error
        return schedule.world

    def run_many(self, seeds: Iterable[int], focus: str | None = None) -> Iterator[W]:
        """The world of each schedule, when it has run."""
        with collected_by_hand():
            for count, seed in enumerate(seeds, 1):
                yield self.run_seed(seed, focus=focus)
                if count % COLLECT_EVERY == 0:
                    gc.collect()

    def first_caught(self, mistake: str, most: int) -> tuple[int, str]:
        """How many schedules it took, and what the checker said; (0, "") if none of `most` did."""
        with collected_by_hand():
            for seed in range(most):
                try:
                    self.run_seed(seed, mistake, self.focus_of(mistake))
                except ViolationError as error:
                    return seed + 1, str(error)
                if seed % COLLECT_EVERY == 0:
                    gc.collect()
        return 0, ""

    def table(self, most: int) -> Iterator[str]:
        """Lines of Markdown: every planted mistake and the schedules it took."""
        yield "| mistake | schedules | kinds of faults |"
        yield "| --- | --- | --- |"
        for mistake, sentence in sorted(self.mistakes.items()):
            took, _ = self.first_caught(mistake, most)
            kinds = ", ".join(sorted(set(self.focus.get(mistake, ("all",)))))
            yield f"| `{mistake}`: {sentence} | {took or f'not in {most}'} | {kinds} |"

    def main(self) -> None:
        parser = argparse.ArgumentParser(description="Replay one schedule with its trace.")
        parser.add_argument("--table", type=int, metavar="N")
        parser.add_argument("--many", type=int, metavar="N")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--mistake", choices=sorted(self.mistakes))
        parser.add_argument("--focus", choices=sorted(self.focus))
        arguments = parser.parse_args()
        if arguments.table:
            for line in self.table(arguments.table):
                sys.stdout.write(f"{line}\n")
        elif arguments.many:
            self._say_many(arguments.seed, arguments.many, arguments.focus)
        else:
            self._replay(arguments.seed, arguments.mistake, arguments.focus)

    def _replay(self, seed: int, mistake: str | None, focus: str | None) -> None:
        schedule = self.schedule(seed, focus)
        trace: list[str] = []
        schedule.world.trace = trace
        try:
            with self.planted(mistake, schedule.world):
                schedule.run()
        finally:
            sys.stdout.write("\n".join([*trace, ""]))
        sys.stderr.write("nothing wrong\n")

    def _say_many(self, first: int, many: int, focus: str | None) -> None:
        """Run them all, whatever is found; then say how many found something."""
        begun, found = time.process_time(), 0
        with collected_by_hand():
            for seed in range(first, first + many):
                try:
                    self.run_seed(seed, focus=focus)
                except ViolationError as error:
                    found += 1
                    sys.stdout.write(f"{error}\n")
                if seed % COLLECT_EVERY == 0:
                    gc.collect()
        took_ms = (time.process_time() - begun) * 1000 / many
        sys.stdout.write(f"{many} schedules, {found} found something, {took_ms:.1f} ms each\n")
