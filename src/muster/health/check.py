"""Verdicts from observations, pure: what an agent's page, its process and the coordinator's knowledge say about it.

Silence is suspicion, never death: `dead` is said only with proof, which comes from the spawner and not from here. Every verdict names its
evidence, so that a person can judge the judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from muster.core import limits

Verdict = Literal["healthy", "degraded", "unhealthy", "unknown"]

_ORDER: dict[str, int] = {"healthy": 0, "unknown": 1, "degraded": 2, "unhealthy": 3}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a value becomes evidence. A warning makes `degraded`, an alarm `unhealthy`."""

    heartbeat_warn_s: float = limits.SUSPECT_AFTER_S
    heartbeat_alarm_s: float = 4 * limits.SUSPECT_AFTER_S
    loop_lag_warn_s: float = 1.0
    loop_lag_alarm_s: float = 10.0
    inbox_warn: int = limits.LANE_CREDIT // 2
    inbox_alarm: int = 5 * limits.LANE_CREDIT
    fds_warn: int = 512
    fds_alarm: int = 900
    memory_warn_bytes: int = 2 << 30
    memory_alarm_bytes: int = 8 << 30
    #: Busy for this long while no attempt began or ended: perhaps wedged, perhaps a long task. Only ever a warning.
    wedged_after_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one agent at one moment. None: not known."""

    is_alive: bool
    """Its worker is running, by proof."""
    is_given_up: bool = False
    """Its worker died too often and is not started again."""
    has_joined: bool = False
    heartbeat_age_s: float | None = None
    in_grace: bool = False
    """The machine slept or this process was stopped: ages say nothing for a while."""
    loop_lag_s: float = 0.0
    inbox_depth: int = 0
    fds: int = 0
    memory_bytes: int = 0
    running: int = 0
    progress_age_s: float | None = None
    own_verdict: str = "unknown"
    own_evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and why. `is_suspect`: it has been silent for too long; it may be stopped, starved or stuck, it is not called dead."""

    verdict: Verdict
    evidence: tuple[str, ...] = ()
    is_suspect: bool = False


@dataclass
class _Case:
    verdict: Verdict = "healthy"
    evidence: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, text: str) -> None:
        self.evidence.append(text)
        if _ORDER[verdict] > _ORDER[self.verdict]:
            self.verdict = verdict

    def measure(self, value: float, warn: float, alarm: float, text: str) -> None:
        if value >= alarm:
            self.add("unhealthy", text)
        elif value >= warn:
            self.add("degraded", text)


_DEFAULT = Bounds()


def judge(seen: Observation, bounds: Bounds = _DEFAULT) -> Judgement:
    """The verdict on one agent."""
    if seen.is_given_up:
        return Judgement("unhealthy", ("its worker died too often and is quarantined",))
    if not seen.is_alive:
        return Judgement("unhealthy", ("its worker is not running",))
    if not seen.has_joined:
        return Judgement("unknown", ("it has not joined yet",))
    case = _Case()
    suspect = False
    if seen.heartbeat_age_s is None:
        case.add("unknown", "no status page")
    elif not seen.in_grace:
        suspect = seen.heartbeat_age_s >= bounds.heartbeat_warn_s
        case.measure(
            seen.heartbeat_age_s,
            bounds.heartbeat_warn_s,
            bounds.heartbeat_alarm_s,
            f"silent for {seen.heartbeat_age_s:.0f} s",
        )
    case.measure(
        seen.loop_lag_s, bounds.loop_lag_warn_s, bounds.loop_lag_alarm_s, f"its loop lags {seen.loop_lag_s:.1f} s"
    )
    case.measure(
        seen.inbox_depth, bounds.inbox_warn, bounds.inbox_alarm, f"{seen.inbox_depth} messages wait in its inbox"
    )
    case.measure(seen.fds, bounds.fds_warn, bounds.fds_alarm, f"{seen.fds} open files")
    case.measure(
        seen.memory_bytes,
        bounds.memory_warn_bytes,
        bounds.memory_alarm_bytes,
        f"uses {seen.memory_bytes >> 20} MiB of memory",
    )
    if (
        seen.running
        and seen.progress_age_s is not None
        and not seen.in_grace
        and seen.progress_age_s >= bounds.wedged_after_s
    ):
        case.add("degraded", f"busy for {seen.progress_age_s:.0f} s without a beginning or an end of an attempt")
    if seen.own_verdict in ("degraded", "unhealthy"):
        own: Verdict = "degraded" if seen.own_verdict == "degraded" else "unhealthy"
        case.add(own, f"says of itself: {', '.join(seen.own_evidence) or seen.own_verdict}")
    return Judgement(case.verdict, tuple(case.evidence), suspect)


def judge_team(judgements: Iterable[Judgement]) -> Judgement:
    """The verdict on a team: unhealthy when half of it is, degraded when anything is; `unknown` only as long as nothing worse is known."""
    counts = Counter(judgement.verdict for judgement in judgements)
    total = sum(counts.values())
    if not total:
        return Judgement("unknown", ("no agents",))
    evidence = tuple(
        f"{counts[verdict]} of {total} {verdict}" for verdict in ("unhealthy", "degraded", "unknown") if counts[verdict]
    )
    if 2 * counts["unhealthy"] >= total:
        return Judgement("unhealthy", evidence)
    if counts["unhealthy"] or counts["degraded"]:
        return Judgement("degraded", evidence)
    return Judgement("unknown" if counts["unknown"] else "healthy", evidence)
