"""Bugs that were made on purpose: a simulation that does not find them proves nothing when it finds none."""

from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import patch

import msgspec

from muster.coordinator import attempts, dispatch, finishing
from muster.coordinator import events as ev
from muster.coordinator import state as st
from muster.coordinator.lifecycle import reclaim
from muster.coordinator.log import EventLog
from muster.coordinator.machine import Machine
from muster.coordinator.shell import Shell
from muster.coordinator.tasks import ASSIGNED
from muster.core.orders import ExitSeen
from muster.core.protocol import RollCall


class WithoutFence(Machine):
    """Believes whoever says how a task ended, whichever attempt it was."""

    def apply(self, fact):
        with patch.object(attempts, "is_current", lambda task, _fact: task.state == ASSIGNED):
            return super().apply(fact)


class ByTime(Machine):
    """Gives the tasks of an agent away that has not been heard of for a while."""

    SILENT_S = 1.0

    def apply(self, fact):
        heard = self.__dict__.setdefault("heard", {})
        if hasattr(fact, "agent"):
            heard[fact.agent] = fact.at_s
        out = super().apply(fact)
        for worker in self.state.workers.values():
            holding = [name for name in worker.agents if self.state.agents[name].held]
            if (
                worker.state == st.ALIVE
                and holding
                and all(heard.get(name, 0.0) + self.SILENT_S < fact.at_s for name in holding)
            ):
                reclaim(self.state, worker, "was silent", out)
        return out


class Robber(Machine):
    """Frees tasks when a worker is gone, without the proof that its tree is."""

    def apply(self, fact):
        if getattr(fact, "survivors", 0):
            fact = msgspec.structs.replace(fact, survivors=0)
        return super().apply(fact)


class WithoutRollCall(Machine):
    """Asks nobody after a restart what he holds."""

    def apply(self, fact):
        return [out for out in super().apply(fact) if not isinstance(getattr(out, "body", None), RollCall)]


class ByChance(Machine):
    """Decides by what else this process has done, so that a replay decides otherwise."""

    LOTS = itertools.count()

    def apply(self, fact):
        if isinstance(fact, ev.AgentReady):
            self.state.counters.stale_refused += next(self.LOTS) % 3 == 0
        return super().apply(fact)


class LastFirst(Machine):
    """Takes any task of a line instead of the one that is next."""

    def apply(self, fact):
        with patch.object(dispatch, "heappop", lambda queue: queue.pop()):
            return super().apply(fact)


class TooSoon(Machine):
    """Lets nothing wait for its time."""

    def apply(self, fact):
        with patch.object(finishing, "line_up", dispatch.enqueue):
            return super().apply(fact)


class LogLater(EventLog):
    """A log that writes nothing until it is told to."""

    def __init__(self, log):
        self._log, self.kept = log, []

    def append(self, facts):
        self.kept += facts

    def write_snapshot(self, _state):
        return False

    def snapshot_due(self, _open_tasks):
        return False

    def __getattr__(self, name):
        return getattr(self._log, name)


class EffectsFirst(Shell):
    """Carries out what it has decided, and writes it down afterwards."""

    async def commit(self):
        log, later = self.log, LogLater(self.log)
        self.log = later
        try:
            await super().commit()
        finally:
            self.log = log
        log.append(later.kept)


class AcksFirst(Shell):
    """Acks what it has read before it has written it down."""

    async def commit(self):
        for delivery in self.intake.acks:
            delivery.ack()
        self.intake.acks.clear()
        await super().commit()


class DeathFirst(Shell):
    """Believes in a death before it has read what the dead one still had to say."""

    def take_exit(self, message):
        facts = self.intake.facts
        self.intake.facts = []
        super().take_exit(message)
        late, self.intake.facts = self.intake.facts, facts
        facts.extend(sorted(late, key=lambda fact: not isinstance(fact, ev.WorkerExited)))
        assert isinstance(self.intake.exits[-1], ExitSeen)


#: What it is called -> what to plant. Each must be found within a hundred seeds.
PLANTED: dict[str, dict[str, Any]] = {
    "no fencing": {"make_machine": WithoutFence},
    "reclaim by time": {"make_machine": ByTime},
    "log after effects": {"make_shell": EffectsFirst},
    "freed before the proof of death": {"make_machine": Robber},
    "no roll call after a restart": {"make_machine": WithoutRollCall},
    "no order in a line": {"make_machine": LastFirst},
    "no delays": {"make_machine": TooSoon},
    "decisions by chance": {"make_machine": ByChance},
    "ack before the log": {"make_shell": AcksFirst},
    "death before the dead one's last results": {"make_shell": DeathFirst},
}
