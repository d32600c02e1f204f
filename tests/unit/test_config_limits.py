"""Limits of a kind's attempts: what is accepted, what is refused and in which words, and what the profile adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.core.spec import AgentLimits
from muster.errors import ConfigError
from muster.fleet import config

COMMAND = '[agents.a]\ncommand = ["true"]\n'
HANDLER = '[agents.a]\nhandler = "a:b"\n'


def bounds(tmp_path: Path, text: str) -> AgentLimits:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    return config.load(file, environ={}).spec("").agents[0].bounds


def test_limits_are_written_with_units(tmp_path: Path) -> None:
    text = COMMAND + '[agents.a.limits]\nrss = "2GB"\nfds = 256\nwall = "1h"\n'
    assert bounds(tmp_path, text) == AgentLimits(rss_bytes=2_000_000_000, fds=256, wall_s=3600.0)


def test_without_a_limit_an_attempt_may_take_the_memory_of_its_profile(tmp_path: Path) -> None:
    fleet = '[fleet]\nprofile = "{}"\n'
    assert bounds(tmp_path, COMMAND) == AgentLimits(rss_bytes=50_000_000_000)
    assert bounds(tmp_path, fleet.format("staging") + COMMAND) == AgentLimits(rss_bytes=10_000_000_000)
    assert bounds(tmp_path, fleet.format("development") + HANDLER) == AgentLimits(rss_bytes=2_000_000_000)


@pytest.mark.parametrize("shared", ["[fleet]\nagents_per_worker = 2\n" + HANDLER, HANDLER + "slots = 2\n"])
def test_handlers_that_share_a_process_have_no_bound_of_memory_and_get_none(tmp_path: Path, shared: str) -> None:
    assert bounds(tmp_path, shared) == AgentLimits()
    with pytest.raises(ConfigError, match="cannot be told apart"):
        bounds(tmp_path, shared + '[agents.a.limits]\nrss = "1GB"\n')


def test_commands_that_share_a_worker_are_told_apart(tmp_path: Path) -> None:
    text = "[fleet]\nagents_per_worker = 2\n" + COMMAND + 'slots = 3\n[agents.a.limits]\nrss = "1GB"\n'
    assert bounds(tmp_path, text).rss_bytes == 1_000_000_000


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (COMMAND, "rsss = 1", "unknown key 'rsss' in [agents.a.limits]; did you mean 'rss'?"),
        (COMMAND, 'rss = "lots"', "[agents.a] limits.rss: 'lots' is not an amount of memory"),
        (COMMAND, "rss = 0", "[agents.a] limits.rss: 0 is not between one byte"),
        (COMMAND, 'wall = "0s"', "[agents.a] limits.wall: no task could ever run"),
        (COMMAND, 'wall = "soon"', "[agents.a] limits.wall: 'soon' is not a duration"),
        (COMMAND, "fds = 3", "[agents.a] limits.fds = 3: a command needs 16 descriptors"),
        (COMMAND, 'fds = "many"', "expected `int"),
        (HANDLER, "fds = 64", "[agents.a] limits.fds is for commands"),
    ],
)
def test_a_limit_that_cannot_hold_is_refused_in_one_sentence(tmp_path: Path, kind: str, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        bounds(tmp_path, f"{kind}[agents.a.limits]\n{line}\n")
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_limits_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a table"):
        bounds(tmp_path, COMMAND + 'limits = "2GB"\n')
