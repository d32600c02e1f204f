"""Processes of a model: generators of steps, and the numbered local states that they go through."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Final

Address = Hashable
Value = Hashable
Script = Generator["Op", Any, None]
Program = Callable[[], Script]

DONE, DEAD, GONE = -1, -2, -3  # finished; killed, buffer draining; killed and cleaned up after
_PLAIN = (int, str, bool, type(None), tuple, frozenset)


class Broken(Exception):
    """Raised by a process that saw what the rule forbids."""


class Interrupted(Exception):
    """Thrown into a process by the explorer: a signal handler raised here; the step did not happen. Not caught, it kills."""


class _Blocked:
    def __repr__(self) -> str:
        return "BLOCKED"


BLOCKED: Final = _Blocked()
"""Returned by the function of an `atomic` step that cannot happen now; it must not have changed anything."""


@dataclass(frozen=True, slots=True)
class Op:
    """One step of a process; make it with the functions below."""

    kind: str
    address: Address = None
    value: Value = None
    act: Callable[[Words], Any] | None = None
    label: str = ""
    after_stores: bool = False
    when_idle: bool = False


def load(address: Address) -> Op:
    """Read a word: the newest own store that is still in the buffer, else what is visible to all."""
    return Op("load", address)


def store(address: Address, value: Value, *, note: Callable[[Words], Any] | None = None) -> Op:
    """Write a word, through the store buffer where the memory model has one.

    `note` is book-keeping for the claims, done in the very moment in which the store is executed.
    """
    return Op("store", address, value, act=note)


def fence() -> Op:
    """A full barrier."""
    return Op("fence")


def choose(*options: Value) -> Op:
    """Let the explorer try every one of `options`."""
    return Op("choose", value=options)


def die() -> Op:
    """The process kills itself here; this costs no crash of the budget."""
    return Op("die")


def atomic(label: str, act: Callable[[Words], Any], *, after_stores: bool = False, when_idle: bool = False) -> Op:
    """One indivisible system call, or book-keeping of the model. `act` may read and write words and return
    `BLOCKED`."""
    return Op("atomic", act=act, label=label, after_stores=after_stores, when_idle=when_idle)


def await_word(address: Address, accept: Callable[[Any], bool], label: str = "") -> Op:
    """Wait until `accept(word)`; the result is the word. Stands for polling or sleeping without the spinning."""

    def look(words: Words) -> Any:
        word = words[address]
        return word if accept(word) else BLOCKED

    return Op("atomic", act=look, label=label or f"await {address}")


class Words:
    """The words that all processes see, as an `atomic` step may read and write them."""

    def __init__(
        self, names: dict[Address, int], values: tuple[Value, ...], buffer: tuple[tuple[int, Value], ...] = ()
    ) -> None:
        self._names, self._before, self._buffer = names, values, buffer
        self._after: list[Value] | None = None

    def __getitem__(self, address: Address) -> Any:
        return (self._after or self._before)[self._number(address)]

    def __setitem__(self, address: Address, value: Value) -> None:
        number = self._number(address)
        if self._after is None:
            self._after = list(self._before)
        self._after[number] = value

    def _number(self, address: Address) -> int:
        number = self._names[address]
        if self._buffer and any(buffered == number for buffered, _ in self._buffer):
            raise RuntimeError(f"an atomic step touches {address}, which the same process has stored and not flushed")
        return number

    def result(self) -> tuple[Value, ...]:
        """The words after the act; the very same tuple if nothing was written."""
        return self._before if self._after is None else tuple(self._after)


class Runs:
    """All local states of one process, numbered. A step is a table look-up; only a new one replays the generator."""

    def __init__(self, merge: bool) -> None:
        self._merge = merge
        self.ops: list[Op] = []
        self._steps: dict[tuple[int, Value], int | Broken] = {}
        self._origin: list[tuple[int, Value] | None] = []
        self._roots: dict[int, Program] = {}
        self._known: dict[Hashable, int] = {}

    def boot(self, program: Program) -> int:
        """The local state at the first step of `program`."""
        script = program()
        return self._number(script, next(script), None, program)

    def advance(self, place: int, result: Value) -> int | Broken:
        """The local state after the step at `place` gave `result`."""
        step = (place, result)
        after = self._steps.get(step)
        if after is None:
            after = self._steps[step] = self._replay(place, result)
        return after

    def _replay(self, place: int, result: Value) -> int | Broken:
        results, at = [result], place
        while (origin := self._origin[at]) is not None:
            at = origin[0]
            results.append(origin[1])
        root = self._roots[at]
        script = root()
        op = next(script)
        try:
            for value in reversed(results):
                op = script.throw(Interrupted()) if value is Interrupted else script.send(value)
        except StopIteration:
            return DONE
        except Interrupted:
            return DEAD
        except Broken as broken:
            return broken
        return self._number(script, op, (place, result), root)

    def _number(self, script: Script, op: Op, origin: tuple[int, Value] | None, root: Program) -> int:
        key: Hashable = _snapshot(script) if self._merge else (root, origin)
        number = self._known.setdefault((root, key), len(self.ops))
        if number == len(self.ops):
            self.ops.append(op)
            self._origin.append(origin)
            self._roots[number] = root
        script.close()
        return number


def _frames(script: Script) -> Iterator[Any]:
    inner: Any = script
    while inner is not None:
        yield inner.gi_frame
        inner = inner.gi_yieldfrom


def _snapshot(script: Script) -> Hashable:
    """Where the generator stands, and its variables: the whole local state, by the rules for programs."""
    parts: list[Hashable] = []
    for frame in _frames(script):
        code = frame.f_code
        constant = (*code.co_freevars, "self")
        local = tuple(sorted((name, v) for name, v in frame.f_locals.items() if name not in constant))
        for name, v in local:
            if not isinstance(v, _PLAIN):
                raise TypeError(f"{code.co_name}: variable {name} holds a {type(v).__name__}, which is no plain value")
        parts.append((code.co_name, frame.f_lasti, local))
    return tuple(parts)
