"""Every crash point of every scenario: struck, mended, judged. The list of them is frozen in points.txt."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .calls import AFTER, BEFORE, Call
from .copies import copy_store
from .faults import Fault, Outcome, live, live_with
from .history import untyped
from .leaving_scenarios import LEAVING_SCENARIOS
from .life import Act, read_notes
from .log_scenarios import LOG_SCENARIOS
from .message_scenarios import MESSAGE_SCENARIOS
from .scenario import Scenario
from .stepped_scenarios import STEPPED_SCENARIOS
from .stepping import Steps, step_through

SCENARIOS = (*MESSAGE_SCENARIOS, *LEAVING_SCENARIOS, *LOG_SCENARIOS)
ALL_SCENARIOS = (*SCENARIOS, *STEPPED_SCENARIOS)
POINTS = Path(__file__).with_name("points.txt")
_HEALING = b'{"what": "healing"}\n'
_KILLED = -9


@dataclass(frozen=True)
class Verdict:
    """What came of one point: complaints that begin with the broken invariant, and bare errors that came out of a call of muster's."""

    point: str
    complaints: tuple[str, ...]
    bare: frozenset[tuple[str, str]] = frozenset()

    def __str__(self) -> str:
        return "\n".join(f"{self.point}\n    {complaint}" for complaint in self.complaints)


class Stage:
    """A scenario's store as it was prepared, and the place on which its lives are played, again and again."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._folder = folder
        self._store, self._notes = folder / "fleet", folder / "notes"
        live(scenario.prepare, self._store, self._notes)
        self._keep("prepared")

    def _keep(self, name: str) -> None:
        """Keep the store and the notes as they are now."""
        copy_store(self._store, self._folder / f"{name}.fleet")
        shutil.copyfile(self._notes, self._folder / f"{name}.notes")

    def _set(self, name: str) -> None:
        """Put them back."""
        copy_store(self._folder / f"{name}.fleet", self._store)
        shutil.copyfile(self._folder / f"{name}.notes", self._notes)

    def _play(self, act: Act, fault: Fault | None) -> Outcome:
        return live_with(fault, act, self._store, self._notes)

    def _mend(self, point: str, more: Iterable[str] = ()) -> Verdict:
        """Let the store be taken up with nothing in the way, and judge all lives on it."""
        complaints = list(more)
        with self._notes.open("ab") as file:
            file.write(_HEALING)
        try:
            live(self.scenario.mend, self._store, self._notes)
        except AssertionError as error:
            complaints.append(f"healed: {error}")
        notes = read_notes(self._notes)
        return Verdict(point, (*complaints, *self.scenario.judge(notes)), frozenset(untyped(notes)))

    @cached_property
    def calls(self) -> list[Call]:
        """The changes of the scenario with nothing in its way."""
        self._set("prepared")
        outcome = self._play(self.scenario.act, None)
        assert outcome.ended == 0, f"{self.scenario.name}: ended with {outcome.ended} although nothing was in its way"
        return outcome.calls

    def points(self) -> Iterator[Fault]:
        """Every crash point."""
        for at, call in enumerate(self.calls, 1):
            for mode in call.modes:
                yield Fault(at, mode)

    def undisturbed(self) -> Verdict:
        """The scenario with nothing in its way."""
        assert self.calls is not None
        return self._mend(f"{self.scenario.name}, undisturbed")

    def strike(self, fault: Fault) -> Verdict:
        """Strike one point, mend and judge."""
        label = self.calls[fault.at - 1].label
        self._set("prepared")
        outcome = self._play(self.scenario.act, fault)
        more = []
        if not outcome.struck or outcome.calls[-1].label != label:
            more.append(f"ended: change {fault.at} is not `{label}` this time")
        if outcome.ended != (_KILLED if fault.mode in (BEFORE, AFTER) else 0):
            more.append(f"ended: the process ended with {outcome.ended}")
        return self._mend(f"{self.scenario.name} --at {fault.at} --mode {fault.mode} ({label})", more)

    def strike_twice(self, at: int) -> Iterator[Verdict]:
        """Kill at change `at`, then kill whoever mends that before each of its own changes; then mend and judge."""
        self._set("prepared")
        self._play(self.scenario.act, Fault(at, AFTER))
        self._keep("struck")
        for second in range(1, 1000):
            self._set("struck")
            outcome = self._play(self.scenario.mend, Fault(second, BEFORE))
            if not outcome.struck:
                assert outcome.ended == 0, f"{self.scenario.name} --at {at}: mending ended with {outcome.ended}"
                return
            yield self._mend(f"{self.scenario.name} --at {at} --then {second} ({outcome.calls[-1].label})")

    def step(self) -> tuple[Steps, list[Verdict]]:
        """Play the scenario instruction by instruction; mend and judge every state that its store passes through."""
        self._set("prepared")
        states: list[int] = []

        def keep(instruction: int) -> None:
            self._keep(f"state-{len(states)}")
            states.append(instruction)

        steps = step_through(self.scenario.act, self._store, self._notes, keep)
        verdicts = [self._mend(f"{self.scenario.name}, behind its last instruction")]
        for number, instruction in enumerate(states):
            self._set(f"state-{number}")
            verdicts.append(self._mend(f"{self.scenario.name}, behind instruction {instruction}"))
        return steps, verdicts


@contextmanager
def stage(scenario: Scenario) -> Iterator[Stage]:
    """A stage in memory where there is a file system in memory."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="muster-crash-", dir=shared) as folder:
        yield Stage(scenario, Path(folder))


# ---------------------------------------------------------------------- the frozen list

#: (scenario, call) -> its modes, and those of them that are known to let a bare error out.
Frozen = dict[tuple[str, str], tuple[list[str], set[str]]]
_HEAD = """\
# The crash points: scenario, call, what can befall it. `make crash UPDATE=1` writes this list; a test compares it.
# A `!` behind a mode: an error that is none of muster's came out of a call then.
"""


def row(scenario: str, label: str, modes: Iterable[str], bare: set[str]) -> str:
    return f"{scenario}: {label}: {' '.join(mode + '!' * (mode in bare) for mode in modes)}"


def read_frozen() -> Frozen:
    frozen: Frozen = {}
    for line in POINTS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            scenario, label, modes = line.split(": ")
            frozen[scenario, label] = (
                [mode.rstrip("!") for mode in modes.split()],
                {mode.rstrip("!") for mode in modes.split() if mode.endswith("!")},
            )
    return frozen


def write_frozen(frozen: Frozen) -> None:
    rows = [row(scenario, label, modes, bare) for (scenario, label), (modes, bare) in frozen.items()]
    POINTS.write_text(_HEAD + "".join(f"{line}\n" for line in rows), encoding="utf-8")


def listed(stage: Stage) -> dict[str, list[str]]:
    """The calls of a scenario with their modes; equal calls count once."""
    return {call.label: list(call.modes) for call in stage.calls}


def bare_complaints(verdict: Verdict, fault: Fault, label: str, frozen: Frozen, name: str) -> list[str]:
    """Complaints about errors that are none of muster's: never out of a send, else only OSError, and only where the list says so."""
    _, known = frozen.get((name, label), ([], set()))
    return [
        f"{verdict.point}\n    typed: {error} came out of {doing}"
        for doing, error in sorted(verdict.bare)
        if doing == "send" or error != "OSError" or fault.mode not in known
    ]
