"""A lab of a test's own: the default one, with some more lines in its cluster.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hafw.lab
from hafw.lab.lab import Lab

__all__ = ["own_lab"]

FOLDER = Path(hafw.lab.__file__).parent
READY_S = 60.0


@contextmanager
def own_lab(folder: Path, more: str) -> Iterator[Lab]:
    """Ready, and gone afterwards. `more` comes after the last lines, which are those of `main`."""
    file = folder / "cluster.yaml"
    file.write_text(f"{(FOLDER / 'cluster.yaml').read_text().rstrip()}\n{more}\n")
    file.with_name("policy.yaml").write_text((FOLDER / "policy.yaml").read_text())
    lab = Lab(file)
    lab.up()
    try:
        lab.wait_ready(READY_S)
        yield lab
    finally:
        lab.down()
