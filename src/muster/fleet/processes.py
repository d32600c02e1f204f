"""The processes of fleets, as the spawners and the kernel tell. Standard library only: `muster ps` is a short verb."""

from __future__ import annotations

from typing import Any

from muster.errors import MusterError
from muster.fleet import places
from muster.supervise.client import SpawnerClient

#: STARTS counts since the store was made: above 1 it was started again, or the fleet was down meanwhile.
HEAD = ("FLEET", "ROLE", "NAME", "PID", "STATE", "STARTS")


def of_fleet(fleet: places.Fleet) -> list[dict[str, Any]]:
    """Rows of one fleet: its spawner, its coordinator, its teams, its workers. Empty if no living spawner holds it."""
    if fleet.spawner_pid is None:
        return []
    try:
        with SpawnerClient.connect(fleet.store) as client:
            told = client.ping()
    except (MusterError, TimeoutError):
        return [_row(fleet, "spawner", "spawner", fleet.spawner_pid, "silent", None)]
    stopping = told.get("stopping")
    rows = [_row(fleet, "spawner", "spawner", told["pid"], f"stopping ({stopping})" if stopping else "running", None)]
    coordinator = told.get("coordinator") or {}
    pid = coordinator.get("pid")
    rows.append(
        _row(
            fleet,
            "coordinator",
            "coordinator",
            pid,
            "running" if pid else "absent",
            int(coordinator.get("restarts", 0)) + 1,
        )
    )
    rows += [
        _row(fleet, "team", team["team"], team["pid"], "running", int(team["incarnation"]))
        for team in told.get("teams", [])
    ]
    rows += [
        _row(fleet, "worker", worker["worker"], worker["pid"], "running", int(worker["incarnation"]))
        for worker in told.get("workers", [])
    ]
    return rows


def _row(fleet: places.Fleet, role: str, name: str, pid: int | None, state: str, starts: int | None) -> dict[str, Any]:
    return {"fleet": fleet.name, "role": role, "name": name, "pid": pid, "state": state, "starts": starts}


def rows(fleet_name: str | None, store_flag: str | None) -> list[dict[str, Any]]:
    """Rows of the named fleet, or of every fleet of this user.

    Raises:
        FleetNotRunningError, InvalidNameError, UnsafePermissionsError: As `places.find`.
    """
    fleets = [places.find(fleet_name, store_flag)] if fleet_name else list(places.scan(store_flag))
    return [row for fleet in fleets for row in of_fleet(fleet)]
