"""What became of the work when the fleet was brought down: the report of a shutdown. Pure, like all of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muster.coordinator import state as st

if TYPE_CHECKING:
    from muster.coordinator.state import Counters, State


def settled(counters: Counters) -> tuple[int, int, int]:
    """What the end of a fleet is compared with: finished, failed and handed back so far."""
    return counters.done, counters.failed + counters.dead + counters.cancelled, counters.handed_back


def farewell(state: State) -> dict[str, Any]:
    """The report of a shutdown. Tasks that `finished` and `failed` while the fleet came to its end, that agents have `handed_back`
    (unstarted, or cut off at the deadline), and that are `kept_tasks` for the next start; `killed_workers` had to be killed.
    """
    ending = state.ending
    finished, failed, handed_back = (
        now - before for now, before in zip(settled(state.counters), ending.settled_before, strict=True)
    )
    return {
        "finished": finished,
        "failed": failed,
        "handed_back": handed_back,
        "kept_tasks": len(state.tasks),
        "killed_workers": ending.killed_workers,
        "took_s": round(max(0.0, state.now_s - ending.began_s), 3),
    }


def note_kill(state: State) -> None:
    """The deadline has passed: count who had to be killed."""
    state.ending.killed_workers = sum(worker.state in (st.STARTING, st.ALIVE) for worker in state.workers.values())
