"""Every system call that changes a store is a crash point: the frozen list of them, and the short form of `make crash`."""

from __future__ import annotations

import pytest

from . import ptrace
from .points import SCENARIOS, bare_complaints, listed, read_frozen, row, stage
from .scenario import Scenario

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(bool(ptrace.why_not()), reason=ptrace.why_not())]


def brief(scenarios: tuple[Scenario, ...]) -> list[Scenario]:
    return [scenario for scenario in scenarios if scenario.is_brief]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_change_of_a_store_is_in_the_frozen_list(scenario: Scenario) -> None:
    with stage(scenario) as on:
        made = {row(scenario.name, label, modes, set()) for label, modes in listed(on).items()}
        verdict = on.undisturbed()
    assert not verdict.complaints, f"\n{verdict}"
    frozen = read_frozen()
    known = {row(*key, modes, set()) for key, (modes, _) in frozen.items() if key[0] == scenario.name}
    if made != known:
        lines = [f"add     {line}" for line in sorted(made - known)] + [
            f"remove  {line}" for line in sorted(known - made)
        ]
        pytest.fail("points.txt differs; `make crash UPDATE=1` rewrites it:\n" + "\n".join(lines), pytrace=False)


@pytest.mark.parametrize("scenario", brief(SCENARIOS), ids=lambda scenario: scenario.name)
def test_a_process_killed_or_failed_at_any_change_leaves_a_store_that_heals(scenario: Scenario) -> None:
    frozen, complaints = read_frozen(), []
    with stage(scenario) as on:
        for fault in on.points():
            verdict = on.strike(fault)
            if verdict.complaints:
                complaints.append(str(verdict))
            complaints += bare_complaints(verdict, fault, on.calls[fault.at - 1].label, frozen, scenario.name)
    assert not complaints, "replay with `python -m tests.crash SCENARIO --at N --mode MODE`:\n" + "\n".join(complaints)


@pytest.mark.parametrize(("name", "share"), [("roll", 4), ("first receive", 9)])
def test_whoever_mends_may_be_killed_at_any_change_as_well(name: str, share: int) -> None:
    """Some deaths of the first process, all deaths of the second; `make crash` has all of the first."""
    (scenario,) = [scenario for scenario in SCENARIOS if scenario.name == name]
    with stage(scenario) as on:
        deaths = range(share, len(on.calls) + 1, share)
        verdicts = [verdict for at in deaths for verdict in on.strike_twice(at)]
    assert len(verdicts) > 10 * len(deaths), "mending must reach the changes it is about"
    complaints = [str(verdict) for verdict in verdicts if verdict.complaints]
    assert not complaints, "\n".join(complaints)
