"""Several coordinators below one spawner: whom an exit is told to, whose orders are obeyed, and that nothing outlives the fleet."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from muster.core.names import COORDINATOR
from muster.core.orders import ExitSeen, Finished, KillWorker, ListWorkers, Reown, WorkerExited, WorkerList
from muster.errors import FleetNotRunningError
from muster.supervise import leftovers, platform, tree
from muster.testing import eventually

from .spawner_toys import Coordinator, ToyFleet, fleet, marked

__all__ = ["fleet"]

EXIT_REFUSED = 77


def _names(listing: WorkerList) -> tuple[list[str], list[str]]:
    return sorted(entry.worker for entry in listing.alive), sorted(entry.worker for entry in listing.exited)


def _reown(root: Coordinator, source: str, target: str = COORDINATOR) -> WorkerList:
    root.send(Reown(source=source, target=target))
    return root.expect(WorkerList, owner=source)


# --------------------------------------------------------------------------- whom an exit is told to


def test_a_team_is_born_with_nothing_but_its_own_link(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    root.spawn("w-root", do="wait")
    teams = [fleet.team(root, f"team-{number}") for number in (1, 2)]
    for team in teams:
        open_here = {
            os.readlink(f"/proc/{team.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{team.pid}/fd") if int(fd) > 2
        }
        # The link to the spawner, and what the toy opened itself: its connection to the test.
        assert len(open_here) == 2, open_here
        assert all(target.startswith("socket:") for target in open_here)
        assert Path(f"/proc/{team.pid}/comm").read_text() == f"muster:{team.name}\n"
        assert os.getsid(team.pid) == team.pid
    told = client.ping()
    assert [(team["team"], team["incarnation"], team["pid"]) for team in told["teams"]] == [
        (team.name, 1, team.pid) for team in teams
    ]
    assert [worker["worker"] for worker in told["workers"]] == ["w-root"]
    root.finish(3)
    assert client.wait(10) == 3


def test_each_coordinator_hears_of_its_own_workers_only(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    one, two = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    a, b = one.spawn("a", do="wait"), two.spawn("b", do="wait")
    assert {worker["worker"]: worker["owner"] for worker in client.ping()["workers"]} == {"a": "team-1", "b": "team-2"}
    for worker in (a, b):
        os.kill(worker.pid, signal.SIGKILL)
    assert one.exited("a").signal == two.exited("b").signal == signal.SIGKILL
    assert _names(one.list()) == ([], ["a"])
    assert _names(two.list()) == ([], ["b"])
    assert _names(root.list()) == (["team-1", "team-2"], [])
    # What was sent before the list was answered came before it: nobody heard of another's worker.
    assert [one.heard(), two.heard(), root.heard()] == [["a"], ["b"], []]
    root.finish()
    assert client.wait(10) == 0


def test_a_dead_team_is_told_to_the_root_and_its_workers_exits_wait_for_its_next_life(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    alive, dead = team.spawn("alive", do="wait"), team.spawn("dead", do="wait")
    team.kill()
    os.kill(dead.pid, signal.SIGKILL)
    assert root.exited("team-1") == WorkerExited(
        worker="team-1", incarnation=1, pid=team.pid, exit_status=None, signal=signal.SIGKILL
    )
    root.send(ExitSeen(worker="team-1", incarnation=1))
    assert not tree.is_gone(alive.pid, alive.start_time), "the death of a coordinator ends no worker"
    again = fleet.team(root, "team-1", 2)
    eventually(lambda: _names(again.list()) == (["alive"], ["dead"]))
    listing = again.list()
    assert listing.alive == [alive]
    assert (listing.owner, listing.coordinator_restarts, listing.last) == ("team-1", 1, {"alive": 1, "dead": 1})
    os.kill(alive.pid, signal.SIGKILL)
    assert again.exited("alive").pid == alive.pid
    root.list()
    assert root.heard() == ["team-1"]
    root.finish()
    assert client.wait(10) == 0


def test_last_words_of_a_team_are_heard_before_its_death_is_told(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    for number in range(1, 101):  # far more than the spawner takes in one turn
        team.order(f"w-{number}", do="exit", status=0)
    for number in range(1, 101):
        assert team.exited(f"w-{number}").exit_status == 0
    os.kill(client.pid, signal.SIGSTOP)
    for number in range(1, 101):
        team.send(ExitSeen(worker=f"w-{number}", incarnation=1))
    team.order("never", do="wait")
    team.kill()
    eventually(lambda: (stat := platform.stat_of(team.pid)) is not None and stat.state == "Z")
    os.kill(client.pid, signal.SIGCONT)
    root.exited("team-1")
    listing = _reown(root, "team-1")
    assert _names(listing) == ([], []), "an acknowledgement was lost, or a dead coordinator got a worker"
    root.finish()
    assert client.wait(10) == 0


def test_a_team_killed_twenty_times_loses_no_exit(fleet: ToyFleet) -> None:
    """In each life one worker dies before the coordinator, one at the same moment, one while there is none; some are acknowledged."""
    client = fleet.start()
    root = fleet.coordinator()
    seen: list[str] = []
    deaths = []
    for life in range(1, 21):
        team = fleet.team(root, "team-1", life)
        listing = team.list()
        assert listing.coordinator_restarts == life - 1
        for exit_ in listing.exited[:-1]:  # the last one stays unacknowledged until the next life
            seen.append(exit_.worker)
            team.send(ExitSeen(worker=exit_.worker, incarnation=exit_.incarnation))
        names = [f"{name}-{life}" for name in ("before", "with", "after")]
        before, with_it, after = (team.spawn(name, do="wait") for name in names)
        deaths += names
        os.kill(before.pid, signal.SIGKILL)
        if life % 2:
            team.exited(names[0])
        os.kill(with_it.pid, signal.SIGKILL)
        team.kill()
        root.exited("team-1", incarnation=life)
        os.kill(after.pid, signal.SIGKILL)
        root.send(ExitSeen(worker="team-1", incarnation=life))
    last = fleet.team(root, "team-1", 21)
    eventually(lambda: not last.list().alive)
    seen += [exit_.worker for exit_ in last.list().exited]
    assert sorted(seen) == sorted(deaths)
    assert last.list().last == dict.fromkeys(deaths, 1)
    root.finish()
    assert client.wait(10) == 0


def test_a_restarted_root_finds_its_teams_alive_and_hears_of_those_that_died_meanwhile(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    one, two = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    root.kill()
    two.kill()
    again = fleet.coordinator()
    assert again.name == COORDINATOR
    eventually(lambda: _names(again.list()) == (["team-1"], ["team-2"]))
    assert again.list().last == {"team-1": 1, "team-2": 1}
    one.spawn("a", do="wait")  # the first team goes on without asking anybody
    assert _names(one.list()) == (["a"], [])
    again.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- a team that is given up


def test_what_a_lost_team_leaves_is_the_roots(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    told, untold, _ = (team.spawn(name, 3, do="wait") for name in ("told", "untold", "lives"))
    os.kill(told.pid, signal.SIGKILL)
    team.exited("told")  # told, not acknowledged
    team.kill()
    root.exited("team-1")
    os.kill(untold.pid, signal.SIGKILL)
    eventually(lambda: _names(_reown(root, "team-1")) == (["lives"], ["told", "untold"]))
    listing = _reown(root, "team-1")
    assert listing.last == {"told": 3, "untold": 3, "lives": 3}
    assert _names(root.list()) == ([], ["team-1"]), "its own list is not mixed with that of the lost team"
    root.send(KillWorker(worker="lives", incarnation=3, signal=signal.SIGTERM))
    assert root.exited("lives").signal == signal.SIGTERM
    for name in ("told", "untold", "lives"):
        root.send(ExitSeen(worker=name, incarnation=3))
    listing = _reown(root, "team-1")
    assert _names(listing) == ([], [])
    assert listing.last == {"told": 3, "untold": 3, "lives": 3}
    root.finish()
    assert client.wait(10) == 0


def test_a_root_that_dies_amid_a_handover_gets_the_same_list_again(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    dead, lives = team.spawn("dead", do="wait"), team.spawn("lives", do="wait")
    team.kill()
    root.exited("team-1")
    os.kill(dead.pid, signal.SIGKILL)
    eventually(lambda: _names(_reown(root, "team-1")) == (["lives"], ["dead"]))
    before = _reown(root, "team-1")
    root.kill()
    again = fleet.coordinator()
    assert _reown(again, "team-1") == before
    os.kill(lives.pid, signal.SIGKILL)
    assert again.exited("lives").pid == lives.pid
    again.finish()
    assert client.wait(10) == 0


def test_an_heir_starts_the_workers_of_a_lost_team_once_they_are_dead(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    lost, heir = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    worker = lost.spawn("w", do="wait")
    lost.kill()
    root.exited("team-1")
    _reown(root, "team-1")
    heir.order("w", 2, do="wait")
    assert heir.exited("w", incarnation=2).exit_status == EXIT_REFUSED  # it lives
    root.send(KillWorker(worker="w", incarnation=1, signal=signal.SIGKILL, tree=True))
    root.exited("w")
    heir.order("w", 1, do="wait")
    assert heir.exited("w", incarnation=1).exit_status == EXIT_REFUSED  # no incarnation twice
    moved = heir.spawn("w", 2, do="wait")  # before the root has acknowledged: that exit stays the root's
    assert _names(_reown(root, "team-1")) == ([], ["w"])
    assert _names(heir.list()) == (["w"], [])
    root.send(ExitSeen(worker="w", incarnation=1))
    os.kill(moved.pid, signal.SIGKILL)
    assert heir.exited("w", incarnation=2).pid == moved.pid
    assert [entry.pid for entry in root.list().exited] == [lost.pid]
    assert worker.pid != moved.pid
    root.finish()
    assert client.wait(10) == 0


def test_a_lost_team_that_is_started_again_owns_its_workers_again(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    worker = team.spawn("w", do="wait")
    team.kill()
    root.exited("team-1")
    _reown(root, "team-1")
    again = fleet.team(root, "team-1", 2)
    assert again.list().alive == [worker]
    root.send(KillWorker(worker="w", incarnation=1, signal=signal.SIGKILL))
    root.list()
    assert not tree.is_gone(worker.pid, worker.start_time)
    os.kill(worker.pid, signal.SIGKILL)
    assert again.exited("w").pid == worker.pid
    root.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- whose orders are obeyed


def test_orders_for_anothers_workers_are_refused(fleet: ToyFleet, capfd: pytest.CaptureFixture[str]) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    one, two = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    worker = one.spawn("w", do="wait")
    for stranger in (two, root):
        stranger.send(KillWorker(worker="w", incarnation=1, signal=signal.SIGKILL))
        stranger.send(KillWorker(worker="w", incarnation=1, signal=signal.SIGKILL, tree=True))
        for incarnation in (1, 2):  # the one that lives is not told to strangers, either
            stranger.order("w", incarnation, do="wait")
            refusal = stranger.exited("w", incarnation=incarnation)
            assert (refusal.pid, refusal.exit_status) == (0, EXIT_REFUSED)
    two.send(KillWorker(worker="team-1", incarnation=1, signal=signal.SIGKILL))
    two.list()
    assert not tree.is_gone(one.pid, platform.start_time_of(one.pid) or 0)
    assert not tree.is_gone(worker.pid, worker.start_time)
    os.kill(worker.pid, signal.SIGKILL)
    one.exited("w")
    two.send(ExitSeen(worker="w", incarnation=1))
    root.send(ExitSeen(worker="w", incarnation=1))
    two.list(), root.list()
    assert _names(one.list()) == ([], ["w"]), "a stranger acknowledged it"
    two.order("w", 2, do="wait")
    assert two.exited("w", incarnation=2).exit_status == EXIT_REFUSED
    root.finish()
    assert client.wait(10) == 0
    stderr = capfd.readouterr().err
    assert "team-2 may not signal worker 'w'; ignored" in stderr
    assert "coordinator may not start incarnation 2 of worker 'w'; refused" in stderr


def test_a_team_cannot_end_the_fleet_nor_take_workers_over_nor_be_the_root(
    fleet: ToyFleet, capfd: pytest.CaptureFixture[str]
) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    one, two = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    worker = one.spawn("w", do="wait")
    two.send(Finished(exit_status=9))
    two.send(Reown(source="team-1", target="team-2"))
    root.send(Reown(source=COORDINATOR, target="team-2"))
    two.order_team(COORDINATOR, 7)
    assert two.exited(COORDINATOR, incarnation=7).exit_status == EXIT_REFUSED
    two.order_team("team-1", 2)  # a second one of that name
    assert two.exited("team-1", incarnation=2).exit_status == EXIT_REFUSED
    root.order_team("team-1", 2)
    assert root.exited("team-1", incarnation=2).exit_status == EXIT_REFUSED
    root.order_team("team-1", 1)  # repeated: the same answer, and no second process
    root.list()
    assert fleet.no_coordinator_within(0.2)
    two.exit(9)
    assert root.exited("team-2").exit_status == 9
    assert one.list().alive == [worker]
    assert client.ping()["coordinator"] == {"pid": root.pid, "restarts": 0}
    root.finish(4)
    assert client.wait(10) == 4
    stderr = capfd.readouterr().err
    assert "team-2 may not send Finished; ignored" in stderr
    assert "team-2 may not send Reown; ignored" in stderr
    assert "coordinator may not send Reown; ignored" in stderr


def test_a_dead_team_is_not_started_again_without_an_order(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    team.kill()
    root.exited("team-1")
    assert fleet.no_coordinator_within(0.5)
    root.finish()
    assert client.wait(10) == 0


def test_a_team_that_floods_the_spawner_starves_nobody(fleet: ToyFleet) -> None:
    client = fleet.start()
    root = fleet.coordinator()
    loud, quiet = fleet.team(root, "team-1"), fleet.team(root, "team-2")
    worker = quiet.spawn("w", do="wait")
    for _ in range(10_000):  # and reads none of the answers
        loud.send(ListWorkers())
    os.kill(worker.pid, signal.SIGKILL)
    assert quiet.exited("w", 5).pid == worker.pid
    root.finish()
    assert client.wait(10) == 0


# --------------------------------------------------------------------------- the end of everything


def _hybrid(fleet: ToyFleet, folder: Path) -> tuple[Coordinator, dict[int, int]]:
    """A root, two teams, and below them workers that resist. Returns the root and the start time of every pid."""
    root = fleet.coordinator()
    started = []
    for name in ("team-1", "team-2"):
        team = fleet.team(root, name)
        started += [
            team.spawn(f"gentle-{name}", do="wait"),
            team.spawn(f"stubborn-{name}", do="stubborn", ready=str(folder / name)),
        ]
        eventually((folder / name).exists)
    pids = {entry.pid: entry.start_time for entry in (*started, *root.list().alive)}
    assert len(pids) == 6
    return root, pids


def test_the_roots_end_ends_the_teams(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start()
    root, pids = _hybrid(fleet, tmp_path)
    root.finish(2)
    assert client.wait(10) == 2
    assert all(tree.is_gone(*process) for process in pids.items())


@pytest.mark.parametrize("mode", ["drain", "now"])
def test_a_stop_that_is_not_obeyed_in_time_ends_the_teams(fleet: ToyFleet, tmp_path: Path, mode: str) -> None:
    client = fleet.start(grace_s=0.3)
    _, pids = _hybrid(fleet, tmp_path)
    client.stop(mode)  # type: ignore[arg-type]
    assert client.wait(15) == 1
    assert all(tree.is_gone(*process) for process in pids.items())


def test_the_orphan_policy_stops_the_teams_of_a_root_that_cannot_be_kept_alive(fleet: ToyFleet, tmp_path: Path) -> None:
    client = fleet.start(orphan_grace_s=0.5)
    root, pids = _hybrid(fleet, tmp_path)
    root.kill()
    for _ in range(10):
        fleet.coordinator().exit(1)
    assert client.wait(15) == 1
    assert all(tree.is_gone(*process) for process in pids.items())


def test_the_orphan_policy_keeps_the_teams_of_a_root_that_cannot_be_kept_alive(fleet: ToyFleet) -> None:
    client = fleet.start(orphan_policy="keep")
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    root.kill()
    for _ in range(10):
        fleet.coordinator().exit(1)
    eventually(lambda: client.ping()["coordinator"] == {"pid": None, "restarts": 10})
    worker = team.spawn("w", do="wait")  # it goes on without a root
    os.kill(worker.pid, signal.SIGKILL)
    team.exited("w")
    client.stop("drain")
    fleet.coordinator().finish()
    assert client.wait(10) == 0


def test_a_killed_spawner_takes_the_teams_with_it_and_the_next_start_finds_what_is_left(
    fleet: ToyFleet, tmp_path: Path
) -> None:
    client = fleet.start()
    root, pids = _hybrid(fleet, tmp_path)
    teams = {entry.pid: entry.start_time for entry in root.list().alive}
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(FleetNotRunningError):
        client.wait(10)
    client.close()
    eventually(lambda: all(tree.is_gone(*process) for process in teams.items()))
    eventually(lambda: sum(not tree.is_gone(*process) for process in pids.items()) == 2)  # those that ignore SIGTERM
    left = [(pid, start) for pid, start in pids.items() if not tree.is_gone(pid, start)]
    assert set(left) <= set(leftovers.find_leftovers(fleet.store, fleet.store_id))
    again = fleet.start()
    assert all(tree.is_gone(*process) for process in pids.items())
    second = fleet.coordinator()
    assert second.list().coordinator_restarts == 0
    second.finish()
    assert again.wait(10) == 0


def test_leftovers_of_a_crashed_hybrid_fleet_are_found_stopped_teams_too(fleet: ToyFleet, tmp_path: Path) -> None:
    """A stopped process does not die of the kernel's SIGTERM: only the record tells of it."""
    client = fleet.start()
    root = fleet.coordinator()
    team = fleet.team(root, "team-1")
    (tmp_path / "deeds").mkdir()
    marker = f"toys-{fleet.store_id}"
    team.spawn("nasty", do="nasty", marker=marker, folder=str(tmp_path / "deeds"), hop_s=0.1)
    eventually(lambda: len(list((tmp_path / "deeds").iterdir())) == 5, 20)
    process = (team.pid, platform.start_time_of(team.pid) or 0)
    os.kill(team.pid, signal.SIGSTOP)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(FleetNotRunningError):
        client.wait(10)
    assert not tree.is_gone(*process)
    assert process in leftovers.find_leftovers(fleet.store, fleet.store_id)
    gone = leftovers.reap_leftovers(fleet.store, fleet.store_id)
    assert team.pid in gone
    assert tree.is_gone(*process)
    tree.kill_trees(marked(marker))  # its mark is not this store's id: what the fixture would find is ended here
