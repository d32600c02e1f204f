"""The limiter's promises over every window, whatever is granted, spent, wasted, given back, refused or forgotten in between."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.errors import ConfigError
from muster.limit.gcra import Gcra
from muster.limit.limiter import PAUSE_FIRST_NS, PAUSE_MARGIN_NS, PROBE_NS, SPEND_BY_NS, Ask, Limiter, Meter
from muster.limit.rates import Rate, parse_amount, parse_rate

S = 1_000_000_000


def excess(spent: list[tuple[int, int]], rate: Rate, burst: int, slack_ns: int = 0) -> int:
    """The most that any window of (time, units) holds beyond rate·(T + slack) + burst, times the period; at most 0 is well."""
    spent = sorted(spent)
    worst = -1
    for first, (begin, _) in enumerate(spent):
        total = 0
        for end, units in spent[first:]:
            total += units
            worst = max(worst, (total - burst) * rate.period_ns - rate.amount * (end - begin + slack_ns))
    return worst


RATES = st.builds(Rate, st.integers(1, 50), st.integers(1, 50))


@given(rate=RATES, burst=st.integers(1, 20), data=st.data())
def test_gcra_lets_pass_no_more_than_its_bound_in_any_window_and_no_less_than_possible(rate, burst, data):
    gcra = Gcra(rate, burst, 0)
    now, passed = 0, []
    for step, units in data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), max_size=40)):
        now += step
        if gcra.conforms(units, now):
            gcra.take(units, now)
            passed.append((now, units))
        elif gcra.fits(units):
            ready = gcra.ready_ns(units)
            assert ready > now
            assert excess([*passed, (now, units)], rate, burst) > 0, "it was refused although it would have fitted"
            assert gcra.available(now) < units
    assert excess(passed, rate, burst) <= 0


@pytest.mark.parametrize("forgets", [False, True])
def test_giving_back_never_mints(forgets):
    # By chance and not by search: it takes an idle moment between a take and its return, and a burst right after it.
    for seed in range(4000):
        rng = random.Random(seed)
        rate, burst = Rate(1, rng.randint(1, 8)), rng.randint(2, 12)
        gcra, now = Gcra(rate, burst, 0), 0
        passed: dict[int, tuple[int, int]] = {}
        held: dict[int, tuple[int, int]] = {}
        for _ in range(30):
            now += rng.choice((0, 0, 1, 3, 10, 40))
            units = rng.randint(1, burst)
            if held and rng.random() < 0.4:
                take = rng.choice(list(held))
                at, taken = held.pop(take)
                unused = rng.randint(0, taken)
                gcra.give_back(unused, take, now)
                passed[take] = (at, taken - unused)
            elif gcra.conforms(units, now):
                if forgets and held:
                    gcra.forget_before(min(held))
                take = gcra.take(units, now)
                held[take] = passed[take] = (now, units)
        assert excess(list(passed.values()), rate, burst) <= 0, f"seed {seed}"


@given(rate=RATES, burst=st.integers(1, 20), units=st.integers(1, 20))
def test_what_is_given_back_at_once_can_be_taken_again(rate, burst, units):
    gcra = Gcra(rate, burst, 0)
    if gcra.conforms(units, 0):
        before = gcra.available(0)
        gcra.give_back(units, gcra.take(units, 0), 0)
        assert gcra.available(0) == before


@given(rate=RATES, burst=st.integers(1, 20), times=st.lists(st.integers(0, 500), max_size=40))
def test_a_clock_that_jumps_mints_nothing(rate, burst, times):
    gcra = Gcra(rate, burst, 0)
    passed, latest = [], 0
    for at in times:
        latest = max(latest, at)
        if gcra.conforms(1, at):
            gcra.take(1, at)
            passed.append((latest, 1))
    assert excess(passed, rate, burst) <= 0


def limiter(rate="10/1s", burst=5, **options) -> Limiter:
    return Limiter([Meter("requests", parse_rate(rate), burst)], 0, **options)


def ask(number: int, agent="a", group="", **amounts: int) -> Ask:
    return Ask(f"ask-{number}", agent, amounts or {"requests": 1}, group)


class Life:
    """A limiter with agents that spend, die, give back and are refused, and a coordinator that crashes, on a clock of its own."""

    def __init__(self, seed: int, rate: Rate, burst: int) -> None:
        self.rng = random.Random(seed)
        self.rate, self.burst, self.now = rate, burst, 0
        self.spent: list[tuple[int, int]] = []
        self.held: dict[str, tuple[int, int, str]] = {}  # ask -> granted at, units, agent
        self.number = 0
        self.limiter = self.new(is_spent=False)

    def new(self, *, is_spent: bool) -> Limiter:
        return Limiter([Meter("requests", self.rate, self.burst)], self.now, is_spent=is_spent)

    def step(self) -> None:
        rng, limiter = self.rng, self.limiter
        self.now += rng.choice((0, 1, S // 100, S // 10, S))
        dice = rng.random()
        if dice < 0.4:
            self.number += 1
            agent = f"a{rng.randrange(5)}"
            limiter.ask(ask(self.number, agent, requests=rng.randint(1, self.burst)))
        elif dice < 0.7 and self.held:
            ask_id = rng.choice(sorted(self.held))
            at, units, _ = self.held.pop(ask_id)
            in_time = min(self.now, at + SPEND_BY_NS)
            used = rng.randint(0, units) if in_time == self.now else 0
            if used:
                self.spent.append((rng.randint(at, in_time), used))
            if rng.random() < 0.1 and used:
                limiter.refuse(ask_id, self.now, rng.choice((None, S)))
            elif used:
                limiter.settle(ask_id, {"requests": used}, self.now)
            else:
                limiter.give_back(ask_id, self.now)
        elif dice < 0.75:
            dead = f"a{rng.randrange(5)}"  # its last credits are spent at the last moment, and nobody is told
            for ask_id in [a for a, (_, _, agent) in self.held.items() if agent == dead]:
                at, units, _ = self.held.pop(ask_id)
                self.spent.append((rng.randint(at, at + SPEND_BY_NS), units))
            limiter.forget(dead)
        elif dice < 0.77:
            for at, units, _ in self.held.values():  # the coordinator is gone; its grants are still spent
                self.spent.append((rng.randint(at, at + SPEND_BY_NS), units))
            self.held.clear()
            self.limiter = self.new(is_spent=True)
        for grant in self.limiter.grants(self.now):
            self.held[grant.ask.ask_id] = (grant.at_ns, grant.ask.amounts["requests"], grant.ask.agent)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), amount=st.integers(1, 100), burst=st.integers(1, 20))
def test_what_is_spent_in_any_window_stays_within_the_promise_through_deaths_crashes_and_refusals(seed, amount, burst):
    life = Life(seed, Rate(amount, S), burst)
    for _ in range(120):
        life.step()
    for at, units, _ in life.held.values():
        life.spent.append((at + SPEND_BY_NS, units))
    assert excess(life.spent, life.rate, burst, SPEND_BY_NS) <= 0, f"seed {seed}"


def test_a_busy_limit_is_used_to_the_full():
    busy = limiter("100/1s", 5)
    now, granted = 0, 0
    for number in range(5000):
        busy.ask(ask(number))
    while now < 20 * S:
        granted += len(busy.grants(now))
        due = busy.due_ns()
        assert due is not None
        now = max(now + 1, due)
    assert granted >= 0.999 * (20 * 100 + 5)


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 3, "b": 1}, {"a": 1, "b": 2, "c": 5}])
def test_groups_share_by_their_weights_within_five_percent(weights):
    shared = limiter("100/1s", 5)
    rng, got, number = random.Random(1), dict.fromkeys(weights, 0), 0
    for group, weight in weights.items():
        shared.weigh(group, weight)
    waiting = dict.fromkeys(weights, 0)
    now = 0
    while now < 30 * S:
        for group in weights:
            while waiting[group] < 20:
                number += 1
                waiting[group] += 1
                shared.ask(ask(number, group=group, requests=rng.randint(1, 5)))
        for grant in shared.grants(now):
            waiting[grant.ask.group] -= 1
            got[grant.ask.group] += grant.ask.amounts["requests"]
        now = max(now + 1, shared.due_ns() or 0)
    total, whole = sum(got.values()), sum(weights.values())
    for group, weight in weights.items():
        assert got[group] / total == pytest.approx(weight / whole, rel=0.05), got


def test_a_group_that_was_silent_has_saved_up_no_turns():
    shared = limiter("100/1s", 1)
    now = 0
    for number in range(300):
        shared.ask(ask(number, group="a"))
    while now < S:
        shared.grants(now)
        now = max(now + 1, shared.due_ns() or 0)
    for number in range(300, 600):
        shared.ask(ask(number, group="b"))
    groups: list[str] = []
    while len(groups) < 20:
        groups += [grant.ask.group for grant in shared.grants(now)]
        now = max(now + 1, shared.due_ns() or 0)
    assert groups.count("b") in (10, 11)


def test_after_a_refusal_nobody_goes_before_the_reset_then_one_then_all_at_the_rate():
    paused = limiter("10/1s", 5)
    for number in range(100):
        paused.ask(ask(number))
    first = paused.grants(0)
    assert len(first) == 5
    paused.refuse(first[0].ask.ask_id, S, 60 * S, "429")
    for grant in first[1:]:
        paused.refuse(grant.ask.ask_id, S, 60 * S)
    until = 61 * S + PAUSE_MARGIN_NS
    assert (paused.phase, paused.paused_ns, paused.until_ns) == ("paused", S, until)
    assert paused.grants(until - 1) == []
    assert paused.due_ns() == until
    (probe,) = paused.grants(until)
    assert probe.is_probe
    assert paused.grants(until + 30 * S) == [], "one probe, and nothing until it is back"
    back = until + 31 * S
    paused.settle(probe.ask.ask_id, None, back)
    assert paused.phase == "open"
    times: list[int] = []
    now = back
    while len(times) < 30:
        times += [now] * len(paused.grants(now))
        now = max(now + 1, paused.due_ns() or 0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= S // 10 - 1, "no stampede"


def test_pauses_without_a_time_double_with_every_refused_probe_and_not_with_those_that_were_on_their_way():
    paused = limiter("10/1s", 5)
    for number in range(100):
        paused.ask(ask(number))
    first = paused.grants(0)
    for grant in first:
        paused.refuse(grant.ask.ask_id, 0, None)
    assert paused.until_ns == PAUSE_FIRST_NS
    now = paused.until_ns
    for doubled in (2, 4, 8):
        (probe,) = paused.grants(now)
        paused.refuse(probe.ask.ask_id, now, None)
        assert paused.until_ns == now + doubled * PAUSE_FIRST_NS
        assert paused.paused_ns == 0, "the episode began with the first refusal"
        now = paused.until_ns


@pytest.mark.parametrize("how", ["death", "silence", "given back"])
def test_a_probe_that_is_lost_is_followed_by_another(how):
    paused = limiter()
    for number in range(3):
        paused.ask(ask(number, agent=f"a{number}"))
    paused.pause(10 * S, 0)
    (probe,) = paused.grants(10 * S)
    now = 11 * S
    if how == "death":
        paused.forget(probe.ask.agent)
    elif how == "given back":
        paused.give_back(probe.ask.ask_id, now)
    else:
        assert paused.due_ns() == 10 * S + PROBE_NS
        now = 10 * S + PROBE_NS
    (second,) = paused.grants(now)
    assert second.is_probe
    assert second.ask.agent != probe.ask.agent


def test_concurrency_halves_once_per_refusal_episode_and_grows_by_one_in_a_window():
    adaptive = limiter("1000/1s", 1000, in_flight_max=16)
    for number in range(500):
        adaptive.ask(ask(number))
    first = adaptive.grants(0)
    assert len(first) == 16
    for grant in first:
        adaptive.refuse(grant.ask.ask_id, 1, S)
    assert adaptive.window == 8
    now = adaptive.until_ns
    (probe,) = adaptive.grants(now)
    adaptive.settle(probe.ask.ask_id, None, now)
    before = adaptive.window
    now += S
    for grant in adaptive.grants(now):
        adaptive.settle(grant.ask.ask_id, None, now)
    assert before + 0.8 < adaptive.window < before + 1.2
    for _ in range(40):
        now += S
        for grant in adaptive.grants(now):
            adaptive.settle(grant.ask.ask_id, None, now)
    assert adaptive.window == 16


def test_an_ask_that_is_sent_again_is_one_ask():
    once = limiter()
    for _ in range(3):
        once.ask(ask(1))
    assert len(once.grants(0)) == 1
    once.ask(ask(1))
    assert once.grants(0) == []
    once.settle("ask-1", None, 0)
    once.settle("ask-1", None, 0)
    assert (once.in_flight, once.waiting) == (0, 0)


def test_what_can_never_pass_is_named():
    both = Limiter([Meter("requests", Rate(1, S), 5), Meter("tokens", Rate(40_000, 60 * S), 40_000)], 0)
    assert both.never_fits({"requests": 1, "tokens": 40_001}) == "tokens"
    assert both.never_fits({"requests": 5}) is None


def test_tokens_that_were_asked_for_and_not_used_come_back_and_those_used_beyond_are_paid():
    tokens = Limiter([Meter("tokens", parse_rate("100/1s"), 100)], 0)
    tokens.ask(ask(1, tokens=80))
    tokens.grants(0)
    tokens.settle("ask-1", {"tokens": 30}, 0)
    assert tokens.available(0) == {"tokens": 70}
    tokens.ask(ask(2, tokens=10))
    tokens.grants(0)
    tokens.settle("ask-2", {"tokens": 90}, 0)
    assert tokens.available(0) == {"tokens": -20}


@pytest.mark.parametrize(
    ("text", "amount", "period_s"),
    [
        ("100/1m", 100, 60),
        ("40k/min", 40_000, 60),
        ("5/s", 5, 1),
        ("2.5M/1h", 2_500_000, 3600),
        (" 7 / 2 days", 7, 172_800),
    ],
)
def test_rates_are_read_as_people_write_them(text, amount, period_s):
    assert parse_rate(text) == Rate(amount, period_s * S)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "100/",
        "/1m",
        "0/1m",
        "-1/m",
        "1/0s",
        "1.5/m",
        "x/y",
        "1/1fortnight",
        100,
        None,
        "1/1m/1m",
        "9e9/s",
        "10T/s",
        "1/400d",
    ],
)
def test_a_bad_rate_is_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^rate: "):
        parse_rate(text)


def test_amounts_are_read_as_people_write_them():
    assert [parse_amount(text) for text in (5, "1200", "40k", "2.5M", "0")] == [5, 1200, 40_000, 2_500_000, 0]
    for bad in (-1, "-1", "1.5", "", None, True, "k", "1e3"):
        with pytest.raises(ConfigError, match="amount"):
            parse_amount(bad)


@pytest.mark.parametrize("text", ["100/1m", "40k/1m", "5/1s", "2500k/1h", "7/2d", "3/250ms"])
def test_a_rate_is_shown_so_that_it_can_be_read_again(text):
    assert str(parse_rate(text)) == text
    assert parse_rate(str(parse_rate(text))) == parse_rate(text)
