"""The rows of `muster top`: ordered, chosen, summed up; and its little chart."""

from __future__ import annotations

from typing import Any

import pytest

from muster.fleet.overview import SORTS, View, arrange, natural, sparkline


def row(agent: str, **fields: Any) -> dict[str, Any]:
    plain = {"state": "ready", "verdict": "healthy", "task": None, "done": 0, "failed": 0, "inbox_depth": 0}
    return {"agent": agent, **plain, "heartbeat_age_s": 1.0, "pss_bytes": 4_000_000, **fields}


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [each["agent"] for each in rows]


def test_agents_are_ordered_as_people_count() -> None:
    rows = [row("w-10"), row("w-2"), row("v-3"), row("w")]
    assert names(arrange(rows, "agent")) == ["v-3", "w", "w-2", "w-10"]
    assert names(arrange(rows, "agent", reverse=True)) == ["w-10", "w-2", "w", "v-3"]
    assert natural("a-007") == natural("a-7")


def test_what_needs_a_look_comes_first() -> None:
    rows = [row("a"), row("b", verdict="degraded"), row("c", verdict="unhealthy"), row("d", verdict="unknown")]
    assert names(arrange(rows, "health")) == ["c", "b", "d", "a"]
    rows = [row("a", failed=1), row("b", failed=3), row("c")]
    assert names(arrange(rows, "failed")) == ["b", "a", "c"]
    rows = [row("a", task=None), row("b", task=9), row("c", task=2)]
    assert names(arrange(rows, "task")) == ["c", "b", "a"]


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_takes_rows_that_lack_what_only_the_coordinator_knows(sort: str) -> None:
    bare = row("a", heartbeat_age_s=None, pss_bytes=None, incarnation=3)
    full = row("b", team="team-1", restarts=1, evidence=["x"])
    assert len(arrange([bare, full], sort)) == 2


def test_words_choose_by_name_team_state_health_and_evidence() -> None:
    rows = [
        row("w-1", team="team-1"),
        row("w-2", state="busy"),
        row("w-3", verdict="degraded", evidence=["Lag of 3 s"]),
    ]
    assert names(arrange(rows, "agent", "team-1")) == ["w-1"]
    assert names(arrange(rows, "agent", "BUSY w")) == ["w-2"]
    assert names(arrange(rows, "agent", "lag")) == ["w-3"]
    assert names(arrange(rows, "agent", "busy lag")) == []
    assert len(arrange(rows, "agent", "  ")) == 3


def test_totals_are_those_of_the_agents() -> None:
    view = View(
        "f",
        "running",
        "healthy",
        [row("a", inbox_depth=2), row("b", state="busy", pss_bytes=None), row("c", state="busy")],
    )
    assert view.totals() == {"agents": 3, "states": {"busy": 2, "ready": 1}, "pss_bytes": 8_000_000, "inbox_depth": 2}
    assert "rates" not in view.as_dict()


def test_a_chart_has_the_newest_values_and_its_highest_is_full() -> None:
    assert sparkline([9, 0, 4, 8], 3) == "▁▅█"
    assert sparkline([0, 0], 5) == "▁▁"
    assert sparkline([], 5) == ""
    assert sparkline([1.0], 0) == ""
