"""How fleet.toml wants workers supervised: what is accepted, and what is refused because it could never work."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.core.spec import ChildSpec, strictest
from muster.errors import ConfigError
from muster.fleet import config


def child(tmp_path: Path, keys: str, profile: str = "development") -> ChildSpec:
    file = tmp_path / "fleet.toml"
    file.write_text(f'[fleet]\nprofile = "{profile}"\n[agents.a]\ncommand = ["true"]\n{keys}\n')
    return config.load(file, environ={}).spec("").agents[0].child


def test_every_key_of_supervision_reaches_the_spec(tmp_path: Path) -> None:
    found = child(
        tmp_path,
        'restarts = "3/1m"\nrestart_delay = "1s"\nrestart_delay_max = "10s"\nready_timeout = "5s"\nmax_tasks = 100\n'
        'max_age = "1h"\nmax_rss = "2GB"',
    )
    assert found == ChildSpec(3, 60.0, 1.0, 10.0, 5.0, 100, 3600.0, 2_000_000_000)


@pytest.mark.parametrize(("profile", "hours"), [("development", 0), ("staging", 4), ("production", 4)])
def test_a_profile_says_how_old_a_worker_gets_unless_the_kind_does(tmp_path: Path, profile: str, hours: int) -> None:
    assert child(tmp_path, "", profile).max_age_s == hours * 3600
    assert child(tmp_path, "max_age = 0", profile).max_age_s == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('restarts = "5/30s"\nrestart_delay = "2s"\nrestart_delay_max = "1m"', ["[agents.a]", "can never be exceeded", "30.0s"]),
        ('restarts = "5"', ["restarts", "5/30s"]),
        ('restarts = "5/0s"', ["restarts"]),
        ('restarts = "9999/1h"', ["1,000"]),
        ("restarts = 5", ["restarts"]),
        ("ready_timeout = 0", ["ready_timeout"]),
        ("max_tasks = -1", ["max_tasks"]),
        ('max_rss = "much"', ["max_rss", "much"]),
        ('max_age = "old"', ["max_age", "old"]),
        ('restart_deley = "1s"', ["restart_deley", "restart_delay"]),
    ],
)  # fmt: skip
def test_supervision_that_cannot_work_is_refused_in_one_sentence(tmp_path: Path, keys: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        child(tmp_path, keys)
    assert all(word in refused.value.message for word in words), refused.value.message
    assert "\n" not in refused.value.message


def test_a_worker_of_several_kinds_is_replaced_when_the_first_of_them_asks() -> None:
    merged = strictest([ChildSpec(3, max_tasks=10), ChildSpec(5, max_tasks=4, max_age_s=60.0), ChildSpec(5)])
    assert merged == ChildSpec(3, max_tasks=4, max_age_s=60.0)
