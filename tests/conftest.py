"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

# No deadline per example: two busy cores would make it a matter of luck. In CI every run tries the same examples, so that a red
# run can be repeated; elsewhere each run tries new ones.
_database = DirectoryBasedExampleDatabase(Path(__file__).resolve().parent.parent / "build" / "cache" / "hypothesis")
settings.register_profile("local", deadline=None, database=_database, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root elsewhere, and say so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _environment_without_muster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not speak to, or as, an agent of the fleet that happens to run it."""
    for name in [name for name in os.environ if name.startswith("MUSTER_")]:
        monkeypatch.delenv(name)
