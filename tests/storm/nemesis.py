"""The fork server that keeps a crew alive and kills it: one at a time, several or all at once, in mid-recovery, stopped before."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop

from muster.supervise import platform

from .crew import Member, World, crew, live

#: Exit status of a process whose code raised.
RAISED = 70
#: A one-shot process is followed by the next one after a pause in this range.
ONE_SHOT_PAUSE_S = (0.005, 0.04)
#: Of the newly born, this share is killed within this time: in the middle of its recovery.
INFANT_SHARE, INFANT_S = 0.15, 0.012
#: Of the kills, this share is preceded by a stop of up to this long; some of the stopped go on instead.
STOP_SHARE, STOP_S = 0.15, 0.1
#: Of the kills, these shares take several, or everybody.
VOLLEY_SHARE, EVERYBODY_SHARE = 0.05, 0.004


class Nemesis:
    """Forks, kills, reaps and forks again. Single-threaded; it sleeps until a child ends or the next deed is due."""

    def __init__(self, world: World, kills_per_s: float, errors: Path) -> None:
        self.world = world
        self.members = crew()
        self.kills: Counter[str] = Counter()
        self.failures: list[str] = []
        self.incarnations = 0
        self._dice = random.Random(f"{world.seed}/nemesis")
        self._kills_per_s = kills_per_s
        self._errors = errors
        self._killing = False
        self._living: dict[int, tuple[Member, int]] = {}  # pid -> member, incarnation
        self._doomed: set[int] = set()  # pids that were sent SIGKILL
        self._deeds: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._respawn = True
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        gc.collect()
        gc.freeze()

    def living(self, slot: int) -> int:
        """The incarnation that lives in this place, or 0."""
        return next((incarnation for member, incarnation in self._living.values() if member.slot == slot), 0)

    # ------------------------------------------------------------------ births

    def spawn_all(self) -> None:
        for member in self.members:
            self._spawn(member)

    def _spawn(self, member: Member) -> None:
        if not self._respawn:
            return
        self.incarnations += 1
        pid = os.fork()
        if pid == 0:
            self._be(member, self.incarnations)
        self._living[pid] = (member, self.incarnations)
        if self._killing and self._dice.random() < INFANT_SHARE:
            self._later(self._dice.random() * INFANT_S, partial(self._blow, pid))

    def _be(self, member: Member, incarnation: int) -> None:
        status = RAISED
        try:
            platform.set_parent_death_signal(signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(live(member, incarnation, self.world))
            status = 0
        except BaseException:
            (self._errors / f"{member.name}-{incarnation}.txt").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    # ------------------------------------------------------------------ deaths

    def begin(self) -> None:
        self._killing = True
        self._later(0.05, self._strike)

    def end(self) -> None:
        """No more kills. Whoever is stopped goes on."""
        self._killing = False
        for pid in self._living:
            self._signal(pid, signal.SIGCONT)

    def _strike(self) -> None:
        if not self._killing:
            return
        dice = self._dice
        for pid in self._victims():
            if dice.random() < STOP_SHARE:
                self._signal(pid, signal.SIGSTOP)
                then = self._go_on if dice.random() < 0.3 else self._blow
                self._later(dice.random() * STOP_S, partial(then, pid))
            else:
                self._kill(pid)
        self._later(dice.expovariate(self._kills_per_s), self._strike)

    def _victims(self) -> list[int]:
        """Everybody, several, or one: of the role that was killed least, so that all roles come to the same number."""
        living = [pid for pid in self._living if pid not in self._doomed]
        if not living:
            return []
        dice = self._dice.random()
        if dice < EVERYBODY_SHARE:
            return living
        if dice < EVERYBODY_SHARE + VOLLEY_SHARE:
            return self._dice.sample(living, min(len(living), self._dice.randrange(2, 5)))
        by_role: dict[str, list[int]] = {}
        for pid in living:
            by_role.setdefault(self._living[pid][0].role, []).append(pid)
        return [self._dice.choice(by_role[min(by_role, key=lambda role: self.kills[role])])]

    def _blow(self, pid: int) -> None:
        if self._killing:
            self._kill(pid)

    def _kill(self, pid: int) -> None:
        if pid in self._living and pid not in self._doomed:
            self._doomed.add(pid)
            self.kills[self._living[pid][0].role] += 1
            self._signal(pid, signal.SIGKILL)

    def _go_on(self, pid: int) -> None:
        self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: int, number: int) -> None:
        if pid in self._living:  # not reaped yet: the pid is still this process's
            os.kill(pid, number)

    # ------------------------------------------------------------------ time

    def _later(self, delay_s: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._deeds, (time.monotonic() + delay_s, next(self._order), deed))

    def run(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Do what is due until `until` holds (looked at ten times a second) or the time is over. Whether it came to hold."""
        deadline, look_at = time.monotonic() + timeout_s, 0.0
        while True:
            now = time.monotonic()
            while self._deeds and self._deeds[0][0] <= now:
                heapq.heappop(self._deeds)[2]()
            self._reap()
            if now >= look_at:
                look_at = now + 0.1
                if until():
                    return True
                if now >= deadline:
                    return False
            due = min(look_at, self._deeds[0][0] if self._deeds else look_at)
            signal.sigtimedwait({signal.SIGCHLD}, max(0.0, due - time.monotonic()))

    def _reap(self) -> None:
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            member, incarnation = self._living.pop(pid)
            doomed = pid in self._doomed
            self._doomed.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGKILL and doomed:
                self._spawn(member)
            elif code == 0:
                self._follow(member)
            else:
                self.failures.append(self._tell(member, incarnation, code))
                self._follow(member)

    def _follow(self, member: Member) -> None:
        self._later(self._dice.uniform(*ONE_SHOT_PAUSE_S), partial(self._spawn, member))

    def _tell(self, member: Member, incarnation: int, code: int) -> str:
        path = self._errors / f"{member.name}-{incarnation}.txt"
        text = path.read_text() if path.exists() else ""
        return f"{member.name} (process {incarnation}) ended with {code}\n{text}"

    def stop_all(self, timeout_s: float) -> list[str]:
        """Wait until everybody has left on their own; who did not is killed and named."""
        self._respawn = False
        if self.run(lambda: not self._living, timeout_s):
            return []
        late = [f"{member.name} did not leave within {timeout_s:g} s" for member, _ in self._living.values()]
        self.kill_all()
        return late

    def kill_all(self) -> None:
        self._respawn = self._killing = False
        for pid in list(self._living):
            self._kill(pid)
        self.run(lambda: not self._living, 10.0)
