"""For all tests: Hypothesis judges no test by the clock, which tells of the machine's load; and
which tests may run beside each other under `--dist loadgroup`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("hafw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hafw")


@pytest.hookimpl(tryfirst=True)  # xdist's own reads the marks.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all that needs the lab, whose names are the machine's, and one each module
    that shares what it builds. All other tests go where there is room."""
    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = item._fixtureinfo.name2fixturedefs
        if "lab_alone" in fixtures:
            item.add_marker(pytest.mark.xdist_group("lab"))
        elif any(found[-1].scope == "module" for found in fixtures.values()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
