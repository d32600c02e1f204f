"""How large the suite is: brief within `make test`, `FLEET=short make fleet` for some minutes, `make fleet` for all of it."""

from __future__ import annotations

import os
from typing import NamedTuple

from muster.core import limits


class Form(NamedTuple):
    """Sizes and numbers of blows. Seconds are those that a test needs on an idle machine, before its patience."""

    name: str
    #: Fleets whose start, rounds, memory and end are measured: (agents, teams).
    sizes: tuple[tuple[int, int], ...]
    #: Agents of the runs in which processes are killed.
    agents: int
    #: The same below coordinators of teams.
    teams: tuple[int, int]
    coordinator_kills: int
    worker_kill_s: int
    stopped_s: float
    #: Tasks that have ended, and tasks that are open, when the coordinator is killed.
    finished: int
    open_tasks: int
    races: int
    #: Tasks of the comparison with xargs and GNU parallel; 0: not compared.
    commands: int


BRIEF = Form("brief", ((50, 0),), 50, (24, 3), 3, 4, 3.0, 2_000, 200, 4, 0)
SHORT = Form("short", ((50, 0), (358, 0), (350, 7)), 358, (350, 7), 6, 15, 10.0, 20_000, 5_000, 40, 2_000)
LONG = Form(
    "long", ((50, 0), (358, 0), (350, 7), (750, 0), (750, 15)), 358, (350, 7), 20, 60, 30.0, 100_000, 5_000, 100, 20_000
)
FORM = {"": BRIEF, "short": SHORT, "long": LONG}[os.environ.get("FLEET", "")]

#: Seconds between kills of a coordinator: its restart budget is not what is tested.
COORDINATOR_PAUSE_S = (
    2.0
    if FORM.coordinator_kills < limits.COORDINATOR_RESTARTS_MAX / 2
    else limits.COORDINATOR_RESTART_PERIOD_S / limits.COORDINATOR_RESTARTS_MAX + 0.5
)
