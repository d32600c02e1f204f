"""What a durable store has accepted survives the machine; and the same look finds what is lost where nothing promises that it survives."""

from __future__ import annotations

import functools

import pytest

from .cut import Plan, Verdict, cut
from .disk import why_not

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
CUTS = 4


@functools.cache
def reason() -> str:
    return why_not()


@pytest.fixture(autouse=True)
def _a_disk_whose_power_can_be_cut() -> None:
    if reason():
        pytest.skip(reason())


def finds(plan: Plan) -> Verdict:
    """The verdict of the first cut, of at most `CUTS`, in which something accepted was lost or torn."""
    verdicts = []
    for n in range(CUTS):
        verdicts.append(cut(Plan(f"{plan.seed} {n}", durable=plan.durable, is_planted=plan.is_planted)))
        if verdicts[-1].lost or verdicts[-1].torn:
            return verdicts[-1]
    raise AssertionError(f"no loss was found: {'; '.join(map(str, verdicts))}")


@pytest.mark.parametrize("number", range(CUTS))
def test_a_power_cut_loses_nothing_that_a_durable_store_accepted(number: int) -> None:
    verdict = cut(Plan(f"short {number}"))
    assert verdict.ok, f"{verdict}; again: python -m tests.power --cuts 1 --seed 'short {number}'"


def test_the_same_look_finds_what_a_store_loses_that_is_not_durable_and_its_lanes_go_on() -> None:
    """The kernel has seconds to write what was stored last; a cut within one finds it unwritten."""
    verdict = finds(Plan("not durable", durable=False))
    assert not verdict.stuck, verdict


def test_the_same_look_finds_a_sender_that_does_not_wait_for_the_disk() -> None:
    finds(Plan("planted", is_planted=True))
