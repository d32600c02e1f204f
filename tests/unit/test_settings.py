"""Settings of a store: their text, their bounds, and that a store keeps the ones it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import muster
from muster.bus.store import add_agent, create_store, read_settings, set_overflow
from muster.bus.transports.lanes import locks
from muster.bus.transports.lanes.overflow import read_policy
from muster.core.settings import DEFAULTS, BusSettings, parse_settings
from muster.errors import ConfigError, RosterFullError, StoreUnsuitableError
from muster.fleet import up


@st.composite
def all_settings(draw: st.DrawFn) -> BusSettings:
    agents = draw(st.integers(1, 3000))
    return BusSettings(
        durable=draw(st.booleans()),
        agents_max=agents,
        lane_messages_max=draw(st.integers(1, 10**6)),
        inbox_messages_max=draw(st.integers(2 * agents, 10**9)),
        outbox_messages_max=draw(st.integers(1, 10**9)),
        fleet_messages_max=draw(st.integers(agents, 10**12)),
        fleet_bytes_max=draw(st.integers(agents * 8192, 10**15)),
    )


@given(settings=all_settings())
def test_what_is_written_is_read_back(settings: BusSettings) -> None:
    assert parse_settings(settings.render()).render() == settings.render()


@given(settings=all_settings())
def test_the_floors_of_all_lanes_never_exceed_the_inbox(settings: BusSettings) -> None:
    assert 1 <= settings.credit_floor <= settings.lane_messages_max
    assert settings.credit_reserved <= settings.inbox_messages_max
    assert settings.sender_messages_max >= 1
    assert settings.sender_messages_max * settings.agents_max <= settings.fleet_messages_max


@pytest.mark.parametrize(
    "text",
    [
        "lane_messages_max many",
        "lane_mesages_max 3",
        "agents_max 0",
        "agents_max -1",
        "agents_max 1e3",
        "agents_max ",
        "agents_max " + "9" * 30,
    ],
)
def test_a_damaged_or_foreign_line_is_an_error_and_not_a_default(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_settings(DEFAULTS.render() + text + "\n")


def test_a_store_keeps_the_settings_that_it_was_made_with(tmp_path: Path) -> None:
    store = create_store(tmp_path / "fleet", BusSettings(lane_messages_max=10))
    create_store(store, BusSettings(lane_messages_max=20))
    create_store(store)
    assert read_settings(store).lane_messages_max == 10


def test_a_store_that_has_agents_gets_no_settings_after_the_fact(tmp_path: Path) -> None:
    """Credit may be out that was reckoned by the defaults: it must not be reckoned anew."""
    store = create_store(tmp_path / "fleet")
    add_agent(store, "alice")
    create_store(store, BusSettings(lane_messages_max=20))
    assert read_settings(store).lane_messages_max == DEFAULTS.lane_messages_max


def test_a_full_roster_takes_no_further_agent_but_knows_those_it_has(tmp_path: Path) -> None:
    store = create_store(tmp_path / "fleet", BusSettings(agents_max=2))
    add_agent(store, "alice")
    add_agent(store, "bob")
    with pytest.raises(RosterFullError):
        add_agent(store, "carol")
    add_agent(store, "alice")
    assert sorted(path.name for path in (store / "agents").iterdir()) == ["alice", "bob"]


# ------------------------------------------------------------------ who joins


async def test_join_sets_the_overflow_of_its_inbox_and_later_joins_keep_it(tmp_path: Path) -> None:
    store = tmp_path / "fleet"
    async with muster.join("alice", store=store, overflow="evict_oldest"):
        pass
    assert read_policy(f"{store}/agents/alice") == "evict_oldest"
    async with muster.join("alice", store=store) as alice:
        assert alice.transport.inbox.overflow == "evict_oldest"  # type: ignore[attr-defined]
    async with muster.join("alice", store=store, overflow="refuse"):
        assert read_policy(f"{store}/agents/alice") == "refuse"


def test_join_refuses_an_unknown_overflow_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refuse, wait, evict_oldest"):
        muster.join("alice", store=tmp_path / "fleet", overflow="drop")
    assert not (tmp_path / "fleet").exists()


def test_the_overflow_of_an_inbox_that_somebody_holds_is_left_to_its_holder(tmp_path: Path) -> None:
    store = create_store(tmp_path / "fleet")
    add_agent(store, "alice")
    lock = f"{store}/agents/alice/inbox.lock"
    assert locks.acquire(lock)
    try:
        set_overflow(store, "alice", "wait")
        assert read_policy(f"{store}/agents/alice") == "refuse"
    finally:
        locks.release(lock)
    set_overflow(store, "alice", "wait")
    assert read_policy(f"{store}/agents/alice") == "wait"


# ------------------------------------------------------------------ fleet.toml


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`up.start` of a text, as far as the store: nothing is spawned."""
    monkeypatch.setattr(up, "start_spawner", lambda *_args, **_options: None)

    def begin(text: str) -> up.Started:
        file = tmp_path / "fleet.toml"
        file.write_text('[fleet]\nname = "f"\n' + text)
        return up.start(file, {}, store_root=str(tmp_path / "root"), detach=True)

    return begin


def test_up_makes_the_store_with_the_files_settings_and_overflows(start: Any) -> None:
    fleet = start(
        '[bus]\nlane_messages_max = 7\n[agents.a]\ncount = 2\ncommand = ["true"]\noverflow = "wait"\n[agents.b]\n'
    )
    assert fleet.notices == []
    assert read_settings(fleet.store).lane_messages_max == 7
    assert [read_policy(f"{fleet.store}/agents/{agent}") for agent in ("a-1", "a-2", "b")] == ["wait", "wait", "refuse"]


def test_an_overflow_that_is_no_longer_in_the_file_ends_for_agents_that_muster_runs(start: Any) -> None:
    """A plain inbox keeps its own: the program that takes it decides."""
    start('[agents.a]\ncommand = ["true"]\noverflow = "wait"\n[agents.b]\noverflow = "wait"')
    fleet = start('[agents.a]\ncommand = ["true"]\n[agents.b]')
    assert [read_policy(f"{fleet.store}/agents/{agent}") for agent in ("a", "b")] == ["refuse", "wait"]


def test_up_says_in_one_sentence_that_a_store_keeps_its_settings(start: Any) -> None:
    start("[bus]\nlane_messages_max = 7\n[agents.a]")
    fleet = start("[bus]\nlane_messages_max = 8\n[agents.a]")
    [notice] = fleet.notices
    assert "lane_messages_max = 7" in notice
    assert read_settings(fleet.store).lane_messages_max == 7
    assert start("[agents.a]").notices == []


def test_up_refuses_to_pretend_that_a_store_is_durable(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.bus.transports.lanes.probe.VOLATILE", frozenset())
    start("[agents.a]")
    with pytest.raises(ConfigError, match="durable = false"):
        start("[bus]\ndurable = true\n[agents.a]")


def test_up_refuses_a_durable_store_on_a_file_system_in_memory(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muster.bus.transports.lanes.probe.filesystem_of", lambda _path: "tmpfs")
    with pytest.raises(StoreUnsuitableError, match="tmpfs"):
        start("[bus]\ndurable = true\n[agents.a]")
    assert isinstance(start("[agents.a]"), up.Started)
