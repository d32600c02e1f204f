"""A small explicit-state model checker: every interleaving, every crash, three memory models.

A *model* is some shared words and some processes. A process is a Python generator that yields one `Op` at a time and is sent
its result, so a rule of the lane protocol reads in a model as it reads in the specification. `Explorer` walks all reachable
states breadth first; the first violation therefore comes with a shortest trace.

Memory models
    SC   a store is visible to everybody at once.
    TSO  (x86) each process has one FIFO store buffer. It reads its own stores early; others see them when they are
         flushed, which happens at any later moment, in the order of the stores.
    PSO  one FIFO per process *and address*: stores to different addresses also overtake each other. Loads stay in order.
         This stands in for ARM on the writer's side only.
    PSO allows whatever TSO allows, and TSO whatever SC allows: the largest models are explored under PSO alone.
    `fence` waits until the own buffer is empty. `atomic` (a system call on kernel state: pipe, directory, lock) neither
    drains the buffer nor waits for it, which is weaker than any real kernel, unless it is made `after_stores` (release of
    a lock).

Crashes
    A process may be killed before each of its steps, as often as its budget says. Its local variables are gone; stores
    that it has executed are not: caches are coherent and survive a SIGKILL, so the buffer goes on draining, in every order
    that the memory model allows, interleaved with the others. Only then does the kernel clean up (`cleanup`: locks, pipe
    ends), and only after that may the process be started again; it may also stay away for ever. An *interrupt* is a signal
    handler that raises (`Interrupted`) instead of the step, and leaves the local variables alive.

What counts as a violation
    `Broken` raised by a process or in an `atomic` step; what `always` says of any state; what `at_rest` says of a state in
    which nothing moves any more unless something crashes or is restarted. "Nobody is stuck", "nothing is skipped" and "no
    wake-up is lost" are claims about states at rest, so they need no notion of fairness, as long as a model waits with
    `await_word` or `BLOCKED` instead of spinning. An `atomic` step made `when_idle` is a timer: it fires only when nothing
    else can move.

Limits, to be said wherever a result is quoted
    The bounds are small (two or three processes, a handful of messages, one or two crashes): a clean run is no proof beyond
    them. Loads are never reordered or speculated, stores are multi-copy atomic, and a word is never torn unless the model
    splits it into parts. Nothing here was measured on ARM. Power cuts are not modelled: what is stored stays.

Rules for programs: local variables hold plain immutable values (checked); what a closure or `self` holds never changes; no
value is kept on Python's stack across a `yield` (no `(yield a) + (yield b)`, no `for` over a sequence with equal elements).
Two executions that stand at the same line with equal variables are then the same state; `Explorer(…, merge=False)` does
without this. MUSTER_MODEL_DEPTH=long explores larger bounds, for minutes.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .program import BLOCKED, DEAD, DONE, GONE, Address, Broken, Interrupted, Op, Program, Runs, Value, Words

Bound = TypeVar("Bound")
LONG: Final = os.environ.get("MUSTER_MODEL_DEPTH") == "long"
STATES_MAX: Final = 20_000_000 if LONG else 600_000
SC, TSO, PSO = "SC", "TSO", "PSO"
MEMORY_MODELS: Final = (SC, TSO, PSO)


def bound(short: Bound, long: Bound) -> Bound:
    """A bound of a model: small by default, larger when MUSTER_MODEL_DEPTH=long."""
    return long if LONG else short


@dataclass(frozen=True)
class Process:
    """A process of a model. `restart` is what runs after a crash (None: it never comes back)."""

    name: str
    program: Program
    restart: Program | None = None
    crashes: int = 0
    interrupts: int = 0
    cleanup: Callable[[Words], None] | None = None


@dataclass(frozen=True)
class Model:
    """Shared words with their first values, processes, and claims that return a complaint or None."""

    name: str
    words: dict[Address, Value]
    processes: tuple[Process, ...]
    at_rest: Callable[[View], str | None] | None = None
    always: Callable[[View], str | None] | None = None


State = tuple[tuple[Value, ...], tuple[tuple[tuple[int, Value], ...], ...], tuple[int, ...], tuple[int, ...]]
Action = tuple[int, str, Any]


class View(Words):
    """A state as claims see it: the visible words, and where each process stands."""

    def __init__(self, explorer: Explorer, state: State) -> None:
        super().__init__(explorer.names, state[0])
        self._explorer, self._state = explorer, state

    def where(self, process: str) -> str:
        """`done`, `dead`, or the label of the step that the process is at."""
        index = self._explorer.index[process]
        place = self._state[2][index]
        if place == DONE:
            return "done"
        return "dead" if place < 0 else self._explorer.runs[index].ops[place].label


@dataclass(frozen=True)
class Result:
    """What an exploration found. `complaint` is None when every reachable state is clean."""

    model: str
    memory: str
    states: int
    steps: int
    complaint: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{self.model} under {self.memory}: {self.states} states, {self.steps} steps"
        if self.complaint is None:
            return f"{head}, clean"
        lines = "\n".join(f"  {number:3} {step}" for number, step in enumerate(self.trace, 1))
        return f"{head}; violated: {self.complaint}\nshortest trace:\n{lines}"


class Explorer:
    """Breadth-first search over the states of one model under one memory model."""

    def __init__(self, model: Model, memory: str, *, merge: bool = True) -> None:
        self.model, self.memory = model, memory
        self.names = {address: number for number, address in enumerate(model.words)}
        self.index = {process.name: number for number, process in enumerate(model.processes)}
        self.runs = [Runs(merge) for _ in model.processes]
        self._addresses = list(model.words)
        self._mortal = [
            (number, p) for number, p in enumerate(model.processes) if p.crashes or p.interrupts or p.restart
        ]
        self._parents: dict[State, tuple[State, Action] | None] = {}
        self._steps = 0

    def explore(self) -> Result:
        """Visit every reachable state, or stop at the first violation."""
        collecting = gc.isenabled()
        gc.disable()  # a million tuples, none of them garbage, none in a cycle
        try:
            return self._search()
        finally:
            if collecting:
                gc.enable()

    def _search(self) -> Result:
        start: State = (
            tuple(self.model.words.values()),
            tuple(() for _ in self.model.processes),
            tuple(run.boot(process.program) for run, process in zip(self.runs, self.model.processes, strict=True)),
            tuple(left for process in self.model.processes for left in (process.crashes, process.interrupts)),
        )
        self._parents[start] = None
        queue = deque([start])
        while queue:
            state = queue.popleft()
            moves, at_rest = self._moves(state)
            complaint = self._complaint(state, at_rest)
            if complaint:
                return self._result(state, complaint)
            for action, after in moves:
                self._steps += 1
                if isinstance(after, Broken):
                    return self._result(state, str(after), action)
                if after not in self._parents:
                    self._parents[after] = (state, action)
                    queue.append(after)
            if len(self._parents) > STATES_MAX:
                raise RuntimeError(f"{self.model.name}: more than {STATES_MAX} states; the bounds are too large")
        return self._result(start, None)

    def _complaint(self, state: State, at_rest: bool) -> str | None:
        complaint = self.model.always(View(self, state)) if self.model.always else None
        if complaint is None and at_rest and self.model.at_rest:
            complaint = self.model.at_rest(View(self, state))
        return complaint

    def _moves(self, state: State) -> tuple[list[tuple[Action, State | Broken]], bool]:
        """All steps from `state`, and whether nothing moves any more but crashes and restarts."""
        moves: list[tuple[Action, State | Broken]] = []
        timers: list[int] = []
        for index, place in enumerate(state[2]):
            if state[1][index]:
                moves += self._flushes(state, index)
            if place >= 0:
                op = self.runs[index].ops[place]
                if op.when_idle:
                    timers.append(index)
                else:
                    moves += self._runs(state, index, op)
            elif place == DEAD and not state[1][index]:
                moves.append(self._clean_up(state, index))
        if not moves:
            for index in timers:
                moves += self._runs(state, index, self.runs[index].ops[state[2][index]])
        at_rest = not moves
        for index, process in self._mortal:
            moves += self._faults(state, index, process)
        return moves, at_rest

    def _flushes(self, state: State, index: int) -> Iterator[tuple[Action, State]]:
        words, buffers, places, left = state
        seen = set()
        for position, (address, value) in enumerate(buffers[index]):
            if address in seen or (position and self.memory == TSO):
                continue
            seen.add(address)
            rest = buffers[index][:position] + buffers[index][position + 1 :]
            after = (_put(words, address, value), _put(buffers, index, rest), places, left)
            yield (index, "becomes visible", (self._addresses[address], value)), after

    def _runs(self, state: State, index: int, op: Op) -> Iterator[tuple[Action, State | Broken]]:
        words, buffers, places, left = state
        buffer = buffers[index]
        if buffer and (op.kind == "fence" or op.after_stores):
            return
        results: tuple[Any, ...] = (None,)
        if op.act is not None:
            shared = Words(self.names, words, buffer)
            try:
                outcome = op.act(shared)
            except Broken as broken:
                yield (index, "", None), broken
                return
            if outcome is BLOCKED:
                return
            words, results = shared.result(), (outcome,)
        if op.kind == "load":
            results = (self._read(words, buffer, self.names[op.address]),)
        elif op.kind == "store":
            address, results = self.names[op.address], (None,)
            if self.memory == SC:
                words = _put(words, address, op.value)
            else:
                buffers = _put(buffers, index, (*buffer, (address, op.value)))
        elif op.kind == "choose":
            results = op.value  # type: ignore[assignment]
        elif op.kind == "die":
            yield (index, "dies", None), (words, buffers, _put(places, index, DEAD), left)
            return
        for result in results:
            place = self.runs[index].advance(places[index], result)
            after = place if isinstance(place, Broken) else (words, buffers, _put(places, index, place), left)
            yield (index, "", result), after

    @staticmethod
    def _read(words: tuple[Value, ...], buffer: tuple[tuple[int, Value], ...], address: int) -> Value:
        for buffered, value in reversed(buffer):
            if buffered == address:
                return value
        return words[address]

    def _clean_up(self, state: State, index: int) -> tuple[Action, State]:
        words, buffers, places, left = state
        clean_up = self.model.processes[index].cleanup
        if clean_up:
            shared = Words(self.names, words)
            clean_up(shared)
            words = shared.result()
        return (index, "is cleaned up after", None), (words, buffers, _put(places, index, GONE), left)

    def _faults(self, state: State, index: int, process: Process) -> Iterator[tuple[Action, State | Broken]]:
        words, buffers, places, left = state
        place = places[index]
        if place >= 0 and left[2 * index]:
            fewer = _put(left, 2 * index, left[2 * index] - 1)
            fate = DEAD if buffers[index] or process.cleanup else GONE
            yield (index, "is KILLED", None), (words, buffers, _put(places, index, fate), fewer)
        if place >= 0 and left[2 * index + 1]:
            fewer = _put(left, 2 * index + 1, left[2 * index + 1] - 1)
            after = self.runs[index].advance(place, Interrupted)
            yield (
                (index, "is interrupted", None),
                after if isinstance(after, Broken) else (words, buffers, _put(places, index, after), fewer),
            )
        if place == GONE and process.restart:
            fresh = self.runs[index].boot(process.restart)
            yield (index, "is started again", None), (words, buffers, _put(places, index, fresh), left)

    def _result(self, state: State, complaint: str | None, last: Action | None = None) -> Result:
        lines = [self._describe(state, last)] if last else []
        while complaint and (parent := self._parents[state]) is not None:
            state, action = parent
            lines.append(self._describe(state, action))
        trace = tuple(reversed(lines))
        return Result(self.model.name, self.memory, len(self._parents), self._steps, complaint, trace)

    def _describe(self, before: State, action: Action) -> str:
        index, what, detail = action
        name = self.model.processes[index].name
        if what:
            return f"{name} {what}" + (f": {detail[0]} = {detail[1]}" if detail else "")
        op = self.runs[index].ops[before[2][index]]
        text = op.label or " ".join(str(part) for part in (op.kind, op.address) if part is not None)
        if op.kind == "store":
            return f"{name}: {text} = {op.value}"
        return f"{name}: {text}" + (f" -> {detail}" if detail is not None else "")


def _put(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def check(model: Model, memory: str, *, states_min: int) -> Result:
    """Assert that the model is clean under `memory`, over at least `states_min` states (else it proves nothing)."""
    result = Explorer(model, memory).explore()
    print(result)
    assert result.complaint is None, str(result)
    assert result.states >= states_min, f"{result}: fewer than {states_min} states, the model has become vacuous"
    return result


def refute(model: Model, memory: str, *, saying: str | tuple[str, ...]) -> Result:
    """Assert that the explorer finds the violation `saying` (parts of its text) in a broken variant; return the trace."""
    result = Explorer(model, memory).explore()
    print(result)
    assert result.complaint is not None, f"{result}: the broken rule was not caught"
    assert any(part in result.complaint for part in ([saying] if isinstance(saying, str) else saying)), str(result)
    return result
