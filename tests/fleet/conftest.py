"""Real fleets of many processes, real kills; the figures come at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.acceptance.place import Place

from . import figures


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of the test's own; whatever is left there at the end is ended and removed."""
    place = Place()
    yield place
    place.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of everything that was measured."""
    rows = figures.table()
    if rows:
        terminalreporter.section("fleet figures")
        for row in rows:
            terminalreporter.write_line(row)
        figures.write()
