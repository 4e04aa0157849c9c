"""Every command that the README and the docs show (``$ `` in a console block) is run here.

``make drill``, ``make check`` and ``make test`` are not run inside a test run: the drills have
`test_drills.py`, the other two are what CI calls. Here their targets must exist and resolve.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.usefixtures("lab_alone")]
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HEADS = {"node", "probe", "fault", "drill", "group", "member"}
NOT_INSIDE_A_TEST = {"make drill", "make check", "make test"}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def heads(text: str) -> set[tuple[str, ...]]:
    """The first lines of tables that hafwctl prints, cell by cell: widths are the contents'."""
    lines = (tuple(re.split(" {2,}", line.strip())) for line in text.splitlines())
    return {cells for cells in lines if cells[0] in HEADS and len(cells) > 2}


def shown(page: Path) -> str:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return "\n".join(text for language, text in blocks if not language)


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_the_commands_of_the_page_work_and_print_its_tables(page: Path) -> None:
    printed: set[tuple[str, ...]] = set()
    try:
        for command in commands(page):
            if command in NOT_INSIDE_A_TEST:
                done = run(command.replace("make ", "make -n "))
            else:
                done = run(command)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            printed |= heads(done.stdout)
        assert heads(shown(page)) <= printed
    finally:
        run(".venv/bin/hafwctl lab down")


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make drill", "make test"} <= set(commands(ROOT / "README.md"))


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
