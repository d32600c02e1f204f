"""The first turn of a coordinator: begin a life of the fleet, or take over from a coordinator that died."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import budget
from muster.coordinator import events as ev
from muster.coordinator.state import LIVE
from muster.core import limits
from muster.core.names import COORDINATOR
from muster.core.spec import strictest, teams, workers

if TYPE_CHECKING:
    from muster.coordinator.shell import Shell
    from muster.core.orders import WorkerList
    from muster.core.spec import FleetSpec, Team


async def adopt(shell: Shell, plan: ev.Plan, listing: WorkerList, results_base_bytes: int = 0) -> None:
    """Take in what the spawner's `listing` says: the dead's last results first, then the roll call of the living.

    `plan`: what a new life of the fleet begins with.
    """
    state, facts = shell.machine.state, shell.intake.facts
    shell.recorder.expect(state.tasks)
    alive = {(entry.worker, entry.incarnation) for entry in listing.alive}
    # Of whom the spawner knows nothing was never forked, or lived below an earlier spawner: then its stored results count. Whose exit is
    # listed is read with it, behind `Recovered`: of what is decided before that, the list knows nothing yet.
    known = alive | {(entry.worker, entry.incarnation) for entry in listing.exited}
    for worker in list(state.workers.values()):
        if worker.state in LIVE and (worker.name, worker.incarnation) not in known:
            shell.drain_worker(worker.name)
    now_s = shell.clock.now_s()
    if state.life == 0 or listing.coordinator_restarts == 0:
        facts.append(ev.FleetStarted(now_s, plan, results_base_bytes))
    else:
        facts.append(
            ev.Recovered(
                now_s,
                [(entry.worker, entry.incarnation, entry.pid, entry.start_time) for entry in listing.alive],
                [(entry.worker, entry.incarnation) for entry in listing.exited],
                listing.coordinator_restarts,
            )
        )
    for exited in listing.exited:
        shell.take_exit(exited)
    shell.notes.write(
        "coordinator.started",
        life=state.life,
        restarts=listing.coordinator_restarts,
        alive=len(alive),
        open_tasks=len(state.tasks),
    )
    shell.recorder.go_on()
    await shell.commit()


def plan_of(spec: FleetSpec) -> ev.Plan:
    """What the root's decisions depend on, from the fleet's specification."""
    divided, budgets = teams(spec).values(), budgets_of(spec)
    halt = spec.run.halt if spec.run is not None else None
    return ev.Plan(
        workers=[_entry_of(team) for team in divided] if divided else _entries(spec, workers(spec)),
        # A team gives its agents something to keep at hand, too.
        # Where money counts, nothing is given out before it is needed.
        prefetch=0
        if budgets
        else max((limits.PREFETCH * len(team.agents()) for team in divided), default=limits.PREFETCH),
        run=spec.run is not None,
        attempts_max=spec.retry.attempts_max,
        deaths_max=spec.retry.deaths_max,
        backoff_s=spec.retry.backoff_s,
        backoff_max_s=spec.retry.backoff_max_s,
        halt=halt.when if halt is not None else "never",
        halt_after=halt.fail if halt is not None else 1,
        grace_s=spec.grace_s,
        agents_per_worker=spec.agents_per_worker,
        tags={kind.name: list(kind.tags) for kind in spec.agents if kind.tags},
        budgets=budgets,
    )


def budgets_of(spec: FleetSpec) -> dict[str, ev.Budget]:
    """What may be spent, as the machine keeps its accounts."""
    bounds = {budget.FLEET: spec.budget}
    for kind in spec.agents:
        bounds |= {kind.name: kind.budget, budget.EACH + kind.name: kind.budget_each}
    return {
        name: ev.Budget(bound.micro_usd, bound.tokens)
        for name, bound in bounds.items()
        if bound.micro_usd or bound.tokens
    }


def team_plan_of(spec: FleetSpec, team: Team) -> ev.Plan:
    """What a team's decisions depend on: about attempts that have ended the root decides."""
    return ev.Plan(workers=_entries(spec, team.workers), run=False, grace_s=spec.grace_s, upstream=COORDINATOR)


def _entry_of(team: Team) -> ev.WorkerPlan:
    size = len(team.agents())
    return ev.WorkerPlan(
        team.name, [(team.name, team.kind.name)], is_team=True, slots=team.kind.slots * size, size=size
    )


def _entries(spec: FleetSpec, hosts: dict[str, tuple[str, ...]]) -> list[ev.WorkerPlan]:
    order = {"always": 0, "on_failure": 1, "never": 2}
    kind_of = {agent: kind for kind in spec.agents for agent in kind.agent_ids()}
    entries = []
    for worker, agents in hosts.items():
        kinds = [kind_of[agent] for agent in agents]
        # A worker that hosts several kinds lives by the strictest wish to be kept alive.
        restart = min((kind.restart for kind in kinds), key=order.__getitem__)
        hosted = [(agent, kind.name) for agent, kind in zip(agents, kinds, strict=True)]
        entries.append(ev.WorkerPlan(worker, hosted, restart, strictest(kind.child for kind in kinds)))
    return entries
