"""The monitor on real status pages."""

from __future__ import annotations

import asyncio

from muster.agent.status import StatusWriter, boottime_ms
from muster.core.protocol import HealthChanged
from muster.health.monitor import Expected, HealthMonitor


class Stage:
    def __init__(self, store, *agents):
        self.store = store
        self.told: list[tuple[str, str]] = []
        self.pages: dict[str, StatusWriter] = {}
        self.expected = {
            agent: Expected(agent, 1, is_alive=True, has_joined=True, is_given_up=False) for agent in agents
        }
        for agent in agents:
            (store / "agents" / agent).mkdir(parents=True, mode=0o700)
            self.pages[agent] = StatusWriter(store / "agents" / agent / "status")
            self.begin(agent, 1)
        self.monitor = HealthMonitor(
            store,
            lambda: self.expected.values(),
            lambda: False,
            lambda agent, judgement: self.told.append((agent, judgement.verdict)),
        )

    def verdict(self, agent: str) -> str:
        return self.monitor.judgements[agent].verdict

    def begin(self, agent, incarnation):
        self.pages[agent].begin(incarnation=incarnation, heartbeat_ms=boottime_ms(), pid=1, pss_bytes=3_000_000)


def test_changes_are_told_once(tmp_path):
    stage = Stage(tmp_path, "a", "b")
    now = boottime_ms() / 1000
    for later in (1, 2, 3):
        stage.monitor.sweep(now + later)
    assert stage.told == [("a", "healthy"), ("b", "healthy")]
    stage.pages["a"].set("fds", 700)
    stage.monitor.sweep(now + 4)
    stage.monitor.sweep(now + 5)
    assert stage.told[2:] == [("a", "degraded")]
    assert stage.monitor.pss_bytes == {"a": 3_000_000, "b": 3_000_000}


def test_after_a_sleep_of_the_machine_nobody_is_suspected_until_there_was_time_to_beat(tmp_path):
    stage = Stage(tmp_path, "a")
    now = boottime_ms() / 1000
    stage.monitor.sweep(now)
    stage.monitor.sweep(now + 3600)
    assert stage.verdict("a") == "healthy"
    for later in (3605, 3610, 3615, 3621):
        stage.monitor.sweep(now + later)
    assert stage.monitor.judgements["a"].is_suspect


def test_silence_without_a_sleep_is_suspected(tmp_path):
    stage = Stage(tmp_path, "a")
    now = boottime_ms() / 1000
    for later in range(0, 32, 2):
        stage.monitor.sweep(now + later)
    assert stage.monitor.judgements["a"].is_suspect


def test_a_page_of_an_earlier_incarnation_says_nothing(tmp_path):
    stage = Stage(tmp_path, "a")
    stage.expected["a"] = Expected("a", 2, is_alive=True, has_joined=True, is_given_up=False)
    stage.monitor.sweep()
    assert stage.verdict("a") == "unknown"
    stage.begin("a", 2)
    stage.monitor.sweep()
    assert stage.verdict("a") == "healthy"


def test_what_an_agent_says_of_itself_counts_until_its_next_incarnation(tmp_path):
    stage = Stage(tmp_path, "a")
    stage.monitor.hear("a", HealthChanged(incarnation=1, verdict="unhealthy", evidence=["wedged"]))
    stage.monitor.sweep()
    assert stage.monitor.judgements["a"].evidence == ("says of itself: wedged",)
    stage.expected["a"] = Expected("a", 2, is_alive=True, has_joined=True, is_given_up=False)
    stage.begin("a", 2)
    stage.monitor.sweep()
    assert stage.verdict("a") == "healthy"


async def test_the_service_sweeps_by_itself_and_stops(tmp_path):
    stage = Stage(tmp_path, "a")
    stage.monitor.start()
    await asyncio.sleep(0)
    assert stage.told == [("a", "healthy")]
    await stage.monitor.stop()
