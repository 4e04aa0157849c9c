"""For all tests: Hypothesis judges no test by the clock, which tells of the machine's load; and
which tests may run beside each other under `--dist loadscope`."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("hafw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hafw")
ROOT = Path(__file__).resolve().parents[1]


@cache
def scope_of(file: str) -> str:
    """Tests of one scope run in one process: all that needs the lab, whose names are the
    machine's, and those of a module that shares what it builds. Empty: the file makes none."""
    text = (ROOT / file).read_text()
    if re.search(r"\b(lab_alone|bare_lab|shared_lab)\b", text):
        return "lab"
    return file if 'scope="module"' in text else ""


class KernelScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """All other tests go where there is room."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid.partition("::")[0]) or nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> KernelScheduling | None:
    wanted = config.getoption("dist") == "loadscope"
    return KernelScheduling(config, log) if wanted else None
