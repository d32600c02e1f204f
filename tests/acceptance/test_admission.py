"""A machine without room: nothing new begins, what runs goes on, and it is said."""

from __future__ import annotations

import json

from muster.testing import eventually

from .place import PATIENCE_S, Place


def test_a_fleet_below_its_floor_takes_tasks_and_begins_none_and_says_why(place: Place) -> None:
    """The floor is set above what any machine has."""
    place.script(
        "fleet.toml",
        '[fleet]\nname = "tight"\n[admit]\nmemory = "900TB"\n[agents.a]\ncommand = ["true"]\n',
    )
    assert place.carry_out("up", "-d").process.returncode == 0
    try:
        assert place.carry_out("send", "coordinator", "x", "--type", "task").process.returncode == 0
        told = eventually(lambda: held_back(place), PATIENCE_S, "the reason is told")
        assert "of memory are free, and below 900,000,000 MB nothing new begins" in told
        shown = place.carry_out("status").output.decode()
        assert "nothing new begins" in shown
    finally:
        assert place.carry_out("down", "--now").process.returncode in (0, 1)


def held_back(place: Place) -> str:
    told = json.loads(place.carry_out("status", "--json").output or b"{}")
    return str(told.get("held_back", ""))
