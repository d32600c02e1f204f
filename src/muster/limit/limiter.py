"""One limiter for the whole fleet: who may use a named resource, when, and how much of it. Pure: no clock, no I/O.

Agents ask for credit; the limiter grants it, in weighted turns between groups, when every meter of the resource conforms. A grant says
until when it may be spent (δ after it was made). So what is admitted in any window T was granted in a window T + δ, and the promise is

    admissions in every window T  <=  rate·(T + δ) + burst,

whatever dies: a credit of a dead agent is wasted, and a limiter that starts after a crash starts empty.

A refusal by the vendor pauses everybody. When the pause is over one ask goes ahead as a probe; only when it is settled well the others
follow, from an empty bucket, so at the rate and without a stampede.

Turns: start-time fair queuing (P. Goyal, H. Vin, H. Cheng, SIGCOMM 1996) over groups, first come first served within one. The cost of an
ask is its largest share of any meter (dominant resource, A. Ghodsi et al., NSDI 2011). Concurrency: additive increase, multiplicative
decrease (D. Chiu, R. Jain, 1989).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import msgspec

from muster.core import limits
from muster.limit.gcra import Gcra
from muster.limit.rates import Rate

#: How long a grant may be spent after it was made, and how long a probe may take before the next one goes ahead.
SPEND_BY_NS = 1_000_000_000
PROBE_NS = 60_000_000_000
#: Pauses after refusals that named no time: doubled with each probe that is refused again.
PAUSE_FIRST_NS, PAUSE_MAX_NS = 1_000_000_000, 120_000_000_000
#: Added to a pause that the vendor named, so that clocks that differ a little do not meet a door that is still shut.
PAUSE_MARGIN_NS = 50_000_000
#: A grant that took more than was asked for is paid back by waiting, at most so long: what an agent says of itself stops nobody for good.
DEBT_NS_MAX = int(limits.LIMITED_S_MAX) * 1_000_000_000
_DECREASE = 0.5


class Meter(msgspec.Struct, frozen=True):
    """One quantity of a resource, such as requests or tokens."""

    name: str
    rate: Rate
    burst: int


class Ask(msgspec.Struct, frozen=True):
    """One wish. `amounts`: units by meter; a meter that is not named takes nothing."""

    ask_id: str
    agent: str
    amounts: dict[str, int]
    group: str = ""


class Grant(msgspec.Struct, frozen=True):
    """What one ask may spend, until `spend_by_ns`."""

    ask: Ask
    at_ns: int
    spend_by_ns: int
    is_probe: bool = False


class _InFlight(msgspec.Struct, frozen=True):
    """A grant that is not settled, and by meter the number under which it was taken."""

    grant: Grant
    takes: dict[str, int]


Phase = Literal["open", "paused", "probing"]


class _Group:
    __slots__ = ("asks", "finish", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.finish = 0.0
        self.asks: OrderedDict[str, Ask] = OrderedDict()


class Limiter:
    """The limiter of one resource."""

    def __init__(
        self, meters: list[Meter], now_ns: int, *, is_spent: bool = False, in_flight_max: int | None = None
    ) -> None:
        """`is_spent`: grants of before are not known (a restart). `in_flight_max`: grants not yet settled at once; adapts below that."""
        self._meters = {meter.name: Gcra(meter.rate, meter.burst, now_ns, is_spent=is_spent) for meter in meters}
        self._groups: dict[str, _Group] = {}
        self._weights: dict[str, float] = {}
        self._virtual = 0.0
        self._in_flight: dict[str, _InFlight] = {}
        self._in_flight_max = in_flight_max
        self.window = float(in_flight_max) if in_flight_max is not None else float("inf")
        self.phase: Phase = "open"
        #: When the pause began and when it ends; what was said about it.
        self.paused_ns = self.until_ns = 0
        self.why = ""
        self._refused_in_a_row = 0
        self._probe: Grant | None = None
        self.granted = self.refused = self.wasted = 0

    # ------------------------------------------------------------------ asking

    def weigh(self, group: str, weight: float) -> None:
        """Give a group its share: with weights 2 and 1, twice as much passes for the first as long as both want more. At least 0.001."""
        self._weights[group] = max(0.001, weight)
        if group in self._groups:
            self._groups[group].weight = self._weights[group]

    def never_fits(self, amounts: dict[str, int]) -> str | None:
        """The meter that these amounts can never pass at once, or None."""
        return next((name for name, gcra in self._meters.items() if not gcra.fits(amounts.get(name, 0))), None)

    def ask(self, ask: Ask) -> None:
        """Queue an ask. One that is queued or in flight already changes nothing (it was sent again)."""
        if ask.ask_id in self._in_flight:
            return
        group = self._groups.get(ask.group)
        if group is None:
            group = self._groups[ask.group] = _Group(self._weights.get(ask.group, 1.0))
        group.asks.setdefault(ask.ask_id, ask)

    def forget(self, agent: str) -> None:
        """The agent is proven dead: its asks are void; what it was granted counts as spent."""
        for group in self._groups.values():
            for ask_id in [ask_id for ask_id, ask in group.asks.items() if ask.agent == agent]:
                del group.asks[ask_id]
        for ask_id in [ask_id for ask_id, held in self._in_flight.items() if held.grant.ask.agent == agent]:
            self._end(ask_id)
            self.wasted += 1

    def withdraw(self, ask_id: str) -> None:
        """Nobody waits for this ask any more."""
        for group in self._groups.values():
            group.asks.pop(ask_id, None)

    # ------------------------------------------------------------------ granting

    def grants(self, now_ns: int) -> list[Grant]:
        """Everything that can be granted at `now_ns`."""
        made: list[Grant] = []
        self._turn(now_ns)
        while (grant := self._next(now_ns)) is not None:
            made.append(grant)
        return made

    def due_ns(self) -> int | None:
        """When `grants` should be called next; None: after the next ask, settlement or refusal."""
        if self.phase == "probing" and self._probe is not None:
            return self._probe.at_ns + PROBE_NS
        group = self._first()
        if group is None:
            return None
        if self.phase == "paused":
            return self.until_ns
        if self._is_full:
            return None
        ask = next(iter(group.asks.values()))
        return max((gcra.ready_ns(ask.amounts.get(name, 0)) for name, gcra in self._meters.items()), default=0)

    def _turn(self, now_ns: int) -> None:
        if self.phase == "paused" and now_ns >= self.until_ns:
            self.phase, self._probe = "probing", None
        if self.phase == "probing" and self._probe is not None and now_ns >= self._probe.at_ns + PROBE_NS:
            self._probe = None  # it was lost: another one

    def _next(self, now_ns: int) -> Grant | None:
        if self.phase == "paused" or (self.phase == "probing" and self._probe is not None) or self._is_full:
            return None
        group = self._first()
        if group is None:
            return None
        ask = next(iter(group.asks.values()))
        meters = self._meters.items()
        if not all(gcra.conforms(ask.amounts.get(name, 0), now_ns) for name, gcra in meters):
            return None
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None:
            for name, gcra in meters:
                gcra.forget_before(oldest.takes[name])
        takes = {name: gcra.take(ask.amounts.get(name, 0), now_ns) for name, gcra in meters}
        is_probe = self.phase == "probing"
        del group.asks[ask.ask_id]
        start = max(self._virtual, group.finish)
        self._virtual = start
        group.finish = start + self._cost(ask) / group.weight
        grant = Grant(ask, now_ns, now_ns + SPEND_BY_NS, is_probe)
        self._in_flight[ask.ask_id] = _InFlight(grant, takes)
        if is_probe:
            self._probe = grant
        self.granted += 1
        return grant

    @property
    def _is_full(self) -> bool:
        return len(self._in_flight) >= self.window

    def _first(self) -> _Group | None:
        """The group whose turn it is: the smallest start tag among those that want something, the older one among equals."""
        best: tuple[float, _Group] | None = None
        for group in self._groups.values():
            if group.asks:
                start = max(self._virtual, group.finish)
                if best is None or start < best[0]:
                    best = start, group
        return None if best is None else best[1]

    def _cost(self, ask: Ask) -> float:
        return max((ask.amounts.get(name, 0) / gcra.rate.per_s for name, gcra in self._meters.items()), default=1.0)

    # ------------------------------------------------------------------ afterwards

    def settle(self, ask_id: str, used: dict[str, int] | None, now_ns: int) -> None:
        """A grant is over and went well. `used`: what it really took, by meter; None: as asked. Unknown ones change nothing."""
        held = self._end(ask_id)
        if held is None:
            return
        for name, gcra in self._meters.items() if used is not None else ():
            asked = held.grant.ask.amounts.get(name, 0)
            took = used.get(name, asked) if used is not None else asked
            took = min(max(0, took), asked + gcra.rate.amount * DEBT_NS_MAX // gcra.rate.period_ns)
            if took > asked:
                gcra.take(took - asked, now_ns)
            elif took < asked:
                gcra.give_back(asked - took, held.takes[name], now_ns)
        if held.grant.is_probe and self.phase == "probing":
            self._open(now_ns)
        if self.phase == "open":
            self._refused_in_a_row = 0
        if self._in_flight_max is not None:
            self.window = min(float(self._in_flight_max), self.window + 1 / max(1.0, self.window))

    def give_back(self, ask_id: str, now_ns: int) -> None:
        """A grant that was not spent at all, and now will not be."""
        held = self._end(ask_id)
        if held is None:
            return
        for name, gcra in self._meters.items():
            gcra.give_back(held.grant.ask.amounts.get(name, 0), held.takes[name], now_ns)

    def refuse(self, ask_id: str, now_ns: int, resets_in_ns: int | None, why: str = "") -> None:
        """The vendor refused: pause everybody until it said, or for a growing while. An unknown ask counts too: somebody was refused."""
        held = self._end(ask_id)
        self.refused += 1
        is_probe = held is not None and held.grant.is_probe
        if self.phase == "open" or is_probe:
            self._refused_in_a_row += 1
            if self._in_flight_max is not None:
                self.window = max(1.0, self.window * _DECREASE)
        if resets_in_ns is not None:
            self.pause(now_ns + resets_in_ns + PAUSE_MARGIN_NS, now_ns, why)
        elif self.phase != "paused":  # else it was on its way when the pause began, and says nothing new
            doublings = min(max(0, self._refused_in_a_row - 1), 30)
            self.pause(now_ns + min(PAUSE_MAX_NS, PAUSE_FIRST_NS << doublings), now_ns, why)

    def pause(self, until_ns: int, now_ns: int, why: str = "") -> None:
        """Grant nothing until then. A pause is only ever made longer."""
        if self.phase == "open":
            self.paused_ns = now_ns
        self.phase, self._probe = "paused", None
        self.until_ns = max(self.until_ns, until_ns)
        self.why = why or self.why

    def _open(self, now_ns: int) -> None:
        self.phase, self._probe, self.why = "open", None, ""
        self.paused_ns = self.until_ns = 0
        for gcra in self._meters.values():  # what was saved up in the pause would be a stampede
            gcra.empty(now_ns)

    def _end(self, ask_id: str) -> _InFlight | None:
        held = self._in_flight.pop(ask_id, None)
        if held is not None and self._probe is held.grant:
            self._probe = None
        return held

    # ------------------------------------------------------------------ for people

    @property
    def waiting(self) -> int:
        """Asks that wait."""
        return sum(len(group.asks) for group in self._groups.values())

    @property
    def in_flight(self) -> int:
        """Grants that are not settled."""
        return len(self._in_flight)

    def available(self, now_ns: int) -> dict[str, int]:
        """Units by meter that could pass now."""
        return {name: gcra.available(now_ns) for name, gcra in self._meters.items()}
