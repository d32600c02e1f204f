"""The generic cell rate algorithm for amounts: exact, in whole numbers, without a clock of its own.

ITU-T I.371 (virtual scheduling form); the same bound as a leaky or token bucket. One number is the whole state of the rate: the theoretical
arrival time. Times are nanoseconds; everything is scaled by the rate's amount, so that no division ever rounds.

Promise: over every window of length T, the units that passed are at most amount·T/period + burst. A time that runs backwards mints
nothing: it is taken for the latest time seen. Giving back mints nothing either: see `give_back`.
"""

from __future__ import annotations

from bisect import bisect_right

from muster.limit.rates import Rate


class Gcra:
    """One rate with a burst. `burst`: units that may pass at once, at least 1."""

    __slots__ = ("_dips", "_latest_ns", "_lowered", "_takes", "_tat", "burst", "rate")

    def __init__(self, rate: Rate, burst: int, now_ns: int, *, is_spent: bool = False) -> None:
        """Full at first; with `is_spent` empty: the state after a crash, when what was granted before is not known."""
        self.rate, self.burst = rate, burst
        self._latest_ns = now_ns
        self._tat = now_ns * rate.amount + (self._tolerance if is_spent else 0)
        self._takes = 0
        #: (number of a take, level before it), levels rising: the lowest level after take n is that of the first entry behind n.
        self._dips: list[tuple[int, int]] = []
        self._lowered = 0

    @property
    def _tolerance(self) -> int:
        return self.burst * self.rate.period_ns

    def _level(self, now_ns: int) -> int:
        """How full the leaky bucket is, 0 or more."""
        self._latest_ns = max(self._latest_ns, now_ns)
        return max(0, self._tat - self._latest_ns * self.rate.amount)

    def fits(self, units: int) -> bool:
        """Whether `units` can ever pass at once."""
        return units <= self.burst

    def ready_ns(self, units: int) -> int:
        """The earliest time at which `units` conform, if nothing else passes before."""
        excess = self._tat + units * self.rate.period_ns - self._tolerance
        return -(-excess // self.rate.amount)  # rounded up: a nanosecond too early is too early

    def conforms(self, units: int, now_ns: int) -> bool:
        """Whether `units` may pass at `now_ns`."""
        return self._level(now_ns) + units * self.rate.period_ns <= self._tolerance

    def take(self, units: int, now_ns: int) -> int:
        """Count `units` that pass now, and return the number of this take. Only after `conforms`, or for what has passed already."""
        level = self._level(now_ns)
        self._takes += 1
        dips, mark = self._dips, level + self._lowered
        while dips and dips[-1][1] >= mark:
            dips.pop()
        dips.append((self._takes, mark))
        self._tat = self._latest_ns * self.rate.amount + level + units * self.rate.period_ns
        return self._takes

    def give_back(self, units: int, take: int, now_ns: int) -> None:
        """`units` of that take have provably not passed.

        Only what is still in the bucket can be taken out of it. What one take adds to the level drains away whenever the level
        would have been zero without it, so it is at most the lowest level since; the rest has become nothing, and giving it back
        would mint it.
        """
        amount = units * self.rate.period_ns
        level = self._level(now_ns)
        at = bisect_right(self._dips, take, key=lambda dip: dip[0])
        lowest = self._dips[at][1] - self._lowered if at < len(self._dips) else level
        self._tat -= max(0, min(amount, lowest, level))
        # Levels of the past were higher by up to this amount than they would have been without it: later calls reckon with less.
        self._lowered += amount

    def forget_before(self, take: int) -> None:
        """Nothing of the takes before this one will be given back."""
        if len(self._dips) > 8:
            del self._dips[: bisect_right(self._dips, take, key=lambda dip: dip[0])]

    def empty(self, now_ns: int) -> None:
        """Forget what was saved up: from now on at the rate, without a burst."""
        self._level(now_ns)
        self._tat = max(self._tat, self._latest_ns * self.rate.amount + self._tolerance)

    def available(self, now_ns: int) -> int:
        """Units that could pass at `now_ns`; less than 0 when more passed than was taken for."""
        return (self._tolerance - self._level(now_ns)) // self.rate.period_ns
