"""fleet.toml: what is accepted, what is refused and in which words, and which layer wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.core.settings import DEFAULTS
from muster.core.spec import roster
from muster.errors import ConfigError, InvalidNameError, MusterError
from muster.fleet import config

GOOD = """
[fleet]
name = "review"
profile = "staging"
grace = "1m30s"

[agents.reviewer]
count = 3
command = ["claude", "-p", "{input}"]
restart = "on_failure"
timeout = "5m"
stop_signal = "SIGINT"
env = { LEVEL = "high" }

[agents.clerk]
handler = "office.clerk:work"
slots = 4
"""


def load(tmp_path: Path, text: str, **kwargs: object) -> config.FleetConfig:
    file = tmp_path / "fleet.toml"
    file.write_text(text)
    kwargs.setdefault("environ", {})
    return config.load(file, **kwargs)  # type: ignore[arg-type]


def test_a_file_becomes_the_spec_that_every_process_reads(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD).spec("0" * 32)
    assert spec.name == "review"
    assert spec.grace_s == 90.0
    assert roster(spec) == ["reviewer-1", "reviewer-2", "reviewer-3", "clerk"]
    reviewer, clerk = spec.agents
    assert reviewer.command == ("claude", "-p", "{input}")
    assert (reviewer.timeout_s, reviewer.stop_signal, reviewer.restart) == (300.0, "INT", "on_failure")
    assert reviewer.env == {"LEVEL": "high"}
    assert (clerk.handler, clerk.slots, clerk.command) == ("office.clerk:work", 4, None)
    assert spec.run is None


def test_relative_directories_are_those_of_the_file(tmp_path: Path) -> None:
    spec = load(tmp_path, '[agents.a]\ncommand = ["true"]\ncwd = "sub"').spec("")
    assert spec.agents[0].cwd == str(tmp_path / "sub")


def test_a_fleet_without_a_name_is_called_like_its_directory(tmp_path: Path) -> None:
    place = tmp_path / "harbour"
    place.mkdir()
    assert load(place, "").name == "harbour"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agents.a]\ncuont = 3", ["'cuont'", "[agents.a]", "'count'", "fleet.toml"]),
        ('[fleet]\nprofil = "staging"', ["'profil'", "[fleet]", "'profile'"]),
        ('[flet]\nname = "x"', ["'flet'", "'fleet'"]),
        ('[agents.a]\ncount = "three"', ["[agents.a] count", "int"]),
        ("[agents.a]\ncount = 0", ["count", "at least 1"]),
        ('[agents.a]\nrestart = "sometimes"', ["restart"]),
        ('[agents.a]\ncommand = ["a"]\nhandler = "b:c"', ["both"]),
        ('[agents.a]\ncommand = "make all"', ["shell = true"]),
        ("[agents.a]\ncommand = []", ["empty"]),
        ('[agents.a]\ntimeout = "5 fortnights"', ["timeout", "fortnights", "30s"]),
        ('[agents.a]\nstop_signal = "NOPE"', ["stop_signal", "NOPE"]),
        ("[fleet]\nagents_per_worker = 0", ["agents_per_worker"]),
        ("[fleet]\nretries = -1", ["retries"]),
        ("[fleet]\nhops = 0", ["hops", "from 1 to 254"]),
        ("[fleet]\nhops = 255", ["hops", "from 1 to 254"]),
        ('[fleet]\nprofile = "prod"', ["'prod'", "'production'"]),
        ("[agents.a]\ncount = 501", ["501", "production", "500"]),
        ('[fleet]\nprofile = "development"\n[agents.a]\ncount = 11', ["development", "10"]),
        ('[agents.a]\noverflow = "evict"', ["[agents.a] overflow", "'evict'"]),
        ("[bus]\nlane_mesages_max = 3", ["'lane_mesages_max'", "[bus]", "'lane_messages_max'"]),
        ("[buss]\ndurable = true", ["'buss'", "'bus'"]),
        ("[bus]\ndurable = 1", ["[bus] durable", "bool"]),
        ("[bus]\nlane_messages_max = 0", ["[bus] lane_messages_max", "at least 1", "fleet.toml"]),
        ("[bus]\ninbox_messages_max = 100", ["[bus] inbox_messages_max", "4,000"]),
        ("[bus]\nagents_max = 12\n[agents.a]\ncount = 10", ["[bus] agents_max", "12", "13"]),
        ("fleet = 3", ["[fleet]", "table"]),
        ("agents = [1]", ["agents"]),
        ("[fleet", ["TOML"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_place(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_status == 2


def test_the_bus_table_becomes_the_settings_of_the_store_and_what_is_absent_its_default(tmp_path: Path) -> None:
    text = "[bus]\ndurable = true\nagents_max = 13\ninbox_messages_max = 400\n[agents.a]\ncount = 10"
    loaded = load(tmp_path, text)
    settings = loaded.bus_settings()
    assert (settings.durable, settings.agents_max, settings.inbox_messages_max) == (True, 13, 400)
    assert settings.lane_messages_max == DEFAULTS.lane_messages_max
    assert loaded.written_bus() == {"durable": True, "agents_max": 13, "inbox_messages_max": 400}
    assert load(tmp_path, "[agents.a]").bus_settings().render() == DEFAULTS.render()


def test_a_kind_says_what_the_senders_of_its_agents_meet(tmp_path: Path) -> None:
    text = '[agents.a]\noverflow = "evict_oldest"\n[agents.b]\n'
    assert [kind.overflow for kind in load(tmp_path, text).spec("").agents] == ["evict_oldest", None]


@pytest.mark.parametrize("name", ["..", "a b", "a.b", "ä", "x" * 65, "coordinator"])
def test_an_agent_whose_name_would_not_be_an_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidNameError):
        load(tmp_path, f'[agents."{name}"]\ncount = 1')


def test_two_kinds_may_not_make_the_same_id(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError, match="a-1"):
        load(tmp_path, "[agents.a]\ncount = 2\n[agents.a-1]")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(MusterError) as caught:
        config.load(tmp_path / "none.toml")
    assert caught.value.exit_status == 2


def test_flag_beats_environment_beats_file_beats_profile(tmp_path: Path) -> None:
    text = '[fleet]\ngrace = "3s"\nprofile = "development"'
    environ = {"MUSTER_GRACE": "2s", "MUSTER_METRICS": "off"}
    assert load(tmp_path, text).fleet.grace == "3s"
    assert load(tmp_path, text, environ=environ).fleet.grace == "2s"
    layered = load(tmp_path, text, environ=environ, flags={"grace": "1s", "debug": None})
    assert layered.fleet.grace == "1s"
    assert layered.fleet.debug is True  # the profile's: a flag that was not given is absent, not a default
    assert layered.fleet.metrics is False
    assert layered.origins["grace"] == "flag"
    assert layered.origins["metrics"] == "MUSTER_METRICS"
    assert layered.origins["debug"] == "profile development"


@pytest.mark.parametrize("environ", [{"MUSTER_RETRIES": "two"}, {"MUSTER_METRICS": "perhaps"}, {"MUSTER_PROFILE": "x"}])
def test_a_wrong_environment_variable_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", environ=environ)
    assert next(iter(environ)) in caught.value.message
