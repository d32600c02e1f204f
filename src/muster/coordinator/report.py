"""The report of a run or of a fleet's life: counted from what was really written down, not from what should have been."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from muster.coordinator.status import latency_ms
from muster.errors import ResultsFileError

if TYPE_CHECKING:
    from muster.coordinator.recording import Recording
    from muster.coordinator.services import Pinger
    from muster.coordinator.shell import Shell
    from muster.health.monitor import HealthMonitor
    from muster.metrics.collector import Collector

#: A front door that began longer before its fleet than this was not waiting for it (the store was started again).
WAIT_MAX_S = 600.0


def wait_began_s(fleet_started_s: float, told_s: float) -> float:
    """When the user's wait began: the front door's start if it is known and plausible, else the fleet's."""
    return told_s if 0 <= fleet_started_s - told_s <= WAIT_MAX_S else fleet_started_s


def build(
    shell: Shell,
    recording: Recording,
    health: HealthMonitor,
    collector: Collector,
    pinger: Pinger | None,
    told_start_s: float = 0.0,
) -> dict[str, Any]:
    """The report as a JSON-ready object. Times are seconds unless their name says otherwise; None is "not known"."""
    state = shell.machine.state
    counters = state.counters
    began_s = wait_began_s(state.started_s, told_start_s)
    unrecorded = Counter(recording.unrecorded.values())
    done = counters.done - unrecorded["done"]
    ended_badly = counters.failed + counters.dead + counters.cancelled
    failed = ended_badly - sum(unrecorded[how] for how in ("failed", "dead", "cancelled"))
    recorded, duplicates = _recorded(shell, recording, done + failed)
    pss = list(health.pss_bytes.values())
    rtt_ms = pinger.rtt_ms() if pinger is not None else {}
    return {
        "agents": len(state.agents),
        "tasks": counters.submitted,
        "done": done,
        "failed": failed,
        "delivered_ratio": recorded / counters.submitted if counters.submitted else 1.0,
        "duplicates": duplicates,
        "reassigned": counters.reassigned,
        "restarts": counters.restarts,
        "ready_s": round(state.started_s + state.ready_s - began_s, 4) if state.ready_s is not None else None,
        "duration_s": round(shell.clock.now_s() - began_s, 4),
        "task_latency_ms": _quantiles(latency_ms(state)),
        "message_rtt_ms": _quantiles(rtt_ms),
        "pss_mb_per_agent": round(sum(pss) / len(pss) / 1e6, 3) if pss else None,
        "ready_agents": sum(
            agent.done + agent.failed > 0 or agent.state != "absent" for agent in state.agents.values()
        ),
        "dead_tasks": counters.dead,
        "attempts_failed": counters.attempts_failed,
        "worker_deaths": counters.worker_deaths,
        "handed_back": counters.handed_back,
        "stale_refused": counters.stale_refused,
        "forged_refused": counters.forged_refused,
        "cancelled": counters.cancelled,
        "retried": counters.retried,
        "coordinator_restarts": counters.coordinator_restarts,
        "outputs_dropped": recording.outputs.dropped,
        "pings_lost": pinger.lost if pinger is not None else 0,
        "metrics": collector.summary(),
    }


def _recorded(shell: Shell, recording: Recording, counted: int) -> tuple[int, int]:
    """(tasks recorded, tasks recorded more than once), read back from the results file where there is one."""
    if recording.results is None or not recording.results.is_regular:
        return counted, recording.recorded_twice
    try:
        lines = Counter(recording.results.numbers_behind(shell.machine.state.results_base_bytes))
    except ResultsFileError:
        return counted, recording.recorded_twice
    retries = shell.machine.state.retries
    return len(lines), sum(count > 1 + retries.get(number, 0) for number, count in lines.items())


def _quantiles(found: dict[str, float]) -> dict[str, float | None]:
    return {"p50": found.get("p50"), "p99": found.get("p99")}


def write(path: str, report: dict[str, Any]) -> None:
    """Write the report, whole or not at all.

    Raises:
        ResultsFileError: It could not be written; an older report at `path` is as it was.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    data = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise ResultsFileError(f"cannot write the report {path}: {error.strerror}", path=path) from None
