"""Everything that was accepted survives a storm of kills; and the storm finds bugs, because it finds those that are planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .crew import ROLES
from .plants import PLANTS

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS, MESSAGES = 60, 20_000


def storm(*arguments: str, timeout_s: float = 100.0) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a storm in a process of its own: it forks, and must have no threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.storm", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.stdout, f"the storm itself broke:\n{done.stderr}"
    return done.returncode, json.loads(done.stdout)


@pytest.mark.timeout(120)
def test_a_storm_of_kills_loses_repeats_and_reorders_nothing() -> None:
    status, report = storm("--kills", str(KILLS), "--messages", str(MESSAGES), "--seconds", "60")
    told = json.dumps(report, indent=2)
    assert status == 0, told
    assert report["ok"], told
    assert set(report["kills"]) == set(ROLES)
    assert min(report["kills"].values()) >= KILLS, told
    assert report["acked"] >= MESSAGES, told
    assert report["share_in_operation"] >= 0.2, f"the kills hit idle processes: {told}"
    assert report["redeliveries"] > 0, f"no message was ever in hand when its reader died: {told}"


#: What must be said about each planted bug: broken rules, any of which tells it.
FOUND = {
    "tail_not_walked": {"numbers", "renumbered"},
    "ack_before_take": {"unfinished"},
    "cursor_reset": {"finalised-twice"},
    "bell_never_rung": {"lost-suffix"},
    "attempt_not_counted": {"attempts"},
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("plant", PLANTS)
def test_a_storm_finds_the_planted_bug(plant: str) -> None:
    status, report = storm("--plant", plant, "--kills", "25", "--seconds", "20", "--drain", "3")
    assert status == 1
    assert FOUND[plant] & set(report["broken"]), json.dumps(report, indent=2)
