"""What long measurements on the command line share: progress, a clean end, results in a file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from hafw.lab.conductor import Say

__all__ = ["JSON_OPTION", "check_writable", "ended_by_sigterm", "progress", "write_json"]

JSON_OPTION = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write everything that was measured to FILE.",
)


@contextmanager
def progress() -> Iterator[Say]:
    """One changing line on a terminal; plain lines elsewhere. Both on stderr."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda text: status.update(text)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM cleans up as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted: everything was cleaned up", err=True)
        raise click.exceptions.Abort from None
    finally:
        signal.signal(signal.SIGTERM, before)


def check_writable(json_file: Path | None) -> None:
    """Better now than after three minutes."""
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise click.BadParameter(f"{json_file.parent} is not a folder", param_hint="--json")


def write_json(json_file: Path | None, octets: bytes) -> None:
    if json_file is None:
        return
    from hafw.instance import write_atomically

    write_atomically(json_file.resolve(), octets, mode=0o644)
