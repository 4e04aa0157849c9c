"""For all tests: Hypothesis judges no test by the clock, which tells of the machine's load."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("hafw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hafw")
