"""A store with three agents, and buses on it that are closed at the end of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from muster.bus.store import add_agent, create_store

from .lanes_world import Joined


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = create_store(tmp_path / "fleet")
    for agent in ("alice", "bob", "carol"):
        add_agent(made, agent)
    return made


@pytest.fixture
def join(store: Path) -> Iterator[Joined]:
    joined = Joined(store)
    yield joined
    for bus in joined.buses:
        bus.transport.close()


@pytest.fixture
def lane(store: Path) -> Path:
    """Where alice stores what bob is to read."""
    return store / "agents/alice/outbox/bob"
