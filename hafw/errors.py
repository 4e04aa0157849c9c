"""Errors an operator can act on, split by who is wrong.

`HafwError` is the only root that a shell catches broadly. `AssertionError` is ours and is never
caught: the process dies and the kernel ends its lease (DESIGN: the gate's deadline is absolute).
"""

from __future__ import annotations

import errno as _errno
from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "HafwError",
    "KernelError",
    "PeerError",
    "RefusedError",
    "StateError",
]


class HafwError(Exception):
    """Root of every error that is reported to a person without a traceback."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in a configuration file: where it is and what would be right."""

    path: str
    """Dotted path inside the document, e.g. ``nodes.gw1.id``; empty for the whole file."""
    message: str
    line: int | None = None
    """1-based line in the file, if known."""
    value: str | None = None
    """The offending value as written, if there is one."""
    hint: str | None = None
    """What would be right."""


class ConfigError(HafwError):
    """A configuration or policy file is wrong. Carries *all* problems found, in file order."""

    def __init__(self, file: str, problems: list[ConfigProblem]) -> None:
        self.file = file
        self.problems = problems
        super().__init__("\n".join(self._line(problem) for problem in problems))

    def _line(self, problem: ConfigProblem) -> str:
        where = self.file if problem.line is None else f"{self.file}:{problem.line}"
        text = (
            f"{where}: {problem.path}: {problem.message}"
            if problem.path
            else (f"{where}: {problem.message}")
        )
        if problem.value is not None:
            text += f" (got {problem.value})"
        if problem.hint:
            text += f"; {problem.hint}"
        return text


class PeerError(HafwError):
    """What another node sent is wrong: drop the datagram or the session, keep the node."""


class KernelError(HafwError):
    """The kernel refused. Carries errno, the request in words, and the object it was about."""

    def __init__(self, errno: int, request: str, target: str, hint: str | None = None) -> None:
        self.errno = errno
        self.request = request
        self.target = target
        name = _errno.errorcode.get(errno, str(errno))
        text = f"kernel refused {request} on {target}: {name}"
        super().__init__(f"{text}; {hint}" if hint else text)


class StateError(HafwError):
    """A file or directory of ours on this machine is missing, unsafe, or in use."""


class RefusedError(HafwError):
    """A command was understood and refused; the text says why and nothing was changed."""
