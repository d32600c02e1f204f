"""Verdicts and their evidence."""

from __future__ import annotations

from typing import Any

import pytest

from muster.health.check import Bounds, Judgement, Observation, judge, judge_team

WELL: dict[str, Any] = {"is_alive": True, "has_joined": True, "heartbeat_age_s": 1.0, "own_verdict": "healthy"}


@pytest.mark.parametrize(
    ("change", "verdict", "evidence"),
    [
        ({}, "healthy", ""),
        ({"has_joined": False}, "unknown", "not joined"),
        ({"is_alive": False}, "unhealthy", "not running"),
        ({"is_given_up": True}, "unhealthy", "quarantined"),
        ({"heartbeat_age_s": None}, "unknown", "no status page"),
        ({"heartbeat_age_s": 29.9}, "healthy", ""),
        ({"heartbeat_age_s": 30.0}, "degraded", "silent for 30 s"),
        ({"heartbeat_age_s": 500.0}, "unhealthy", "silent for 500 s"),
        ({"heartbeat_age_s": 500.0, "in_grace": True}, "healthy", ""),
        ({"loop_lag_s": 2.0}, "degraded", "loop lags 2.0 s"),
        ({"loop_lag_s": 20.0}, "unhealthy", "loop lags"),
        ({"inbox_depth": 500}, "degraded", "500 messages"),
        ({"fds": 1000}, "unhealthy", "1000 open files"),
        ({"memory_bytes": 3 << 30}, "degraded", "3072 MiB"),
        ({"running": 1, "progress_age_s": 3599.0}, "healthy", ""),
        ({"running": 1, "progress_age_s": 3601.0}, "degraded", "busy for 3601 s"),
        ({"running": 0, "progress_age_s": 9999.0}, "healthy", ""),
        ({"own_verdict": "degraded", "own_evidence": ("disk slow",)}, "degraded", "disk slow"),
        ({"own_verdict": "unhealthy"}, "unhealthy", "says of itself"),
    ],
)
def test_a_verdict_names_its_evidence(change, verdict, evidence):
    judgement = judge(Observation(**{**WELL, **change}))
    assert judgement.verdict == verdict
    assert evidence in " | ".join(judgement.evidence)
    assert bool(judgement.evidence) == bool(evidence)


def test_the_worst_finding_decides_and_all_are_told():
    judgement = judge(Observation(**{**WELL, "heartbeat_age_s": 40.0, "fds": 2000}))
    assert judgement.verdict == "unhealthy"
    assert len(judgement.evidence) == 2


def test_silence_makes_a_suspect_and_never_a_dead():
    for age in (31, 3600, 10**6):
        judgement = judge(Observation(**{**WELL, "heartbeat_age_s": float(age)}))
        assert judgement.is_suspect
        assert "dead" not in " ".join(judgement.evidence)
    assert not judge(Observation(**WELL)).is_suspect


def test_bounds_are_the_callers():
    assert judge(Observation(**{**WELL, "fds": 20}), Bounds(fds_warn=10, fds_alarm=30)).verdict == "degraded"


@pytest.mark.parametrize(
    ("verdicts", "team"),
    [
        ([], "unknown"), (["healthy"] * 3, "healthy"), (["healthy", "healthy", "degraded"], "degraded"),
        (["healthy", "healthy", "unhealthy"], "degraded"), (["healthy", "unhealthy"], "unhealthy"), (["healthy", "unknown"], "unknown"),
        (["unknown", "degraded", "healthy"], "degraded"),
    ],
)  # fmt: skip
def test_a_team_is_judged_by_its_members(verdicts, team):
    assert judge_team(Judgement(verdict) for verdict in verdicts).verdict == team
