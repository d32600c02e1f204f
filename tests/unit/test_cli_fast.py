"""The short way of `send recv ask ps`: what it understands, what it leaves to click, and what it must not import."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from muster.cli import fast
from muster.cli.main import VERBS, group

#: What the short way must never load: each costs more than a bare interpreter.
HEAVY = ["click", "rich", "asyncio", "msgspec", "dataclasses", "typing", "uvloop", "psutil"]


def parsed(line: list[str]) -> tuple[list[str], dict[str, str], set[str]] | None:
    found = fast.parse(line)
    return None if found is None else (found.words, found.values, found.flags)


def test_plain_forms_are_understood() -> None:
    assert parsed(["send", "bob", "hi"]) == (["bob", "hi"], {}, set())
    assert parsed(["send", "bob"]) == (["bob"], {}, set())
    assert parsed(["send", "-t", "note", "bob", "hi", "--json"]) == (["bob", "hi"], {"type": "note"}, {"json"})
    assert parsed(["send", "--type=note", "bob", "--", "-x"]) == (["bob", "-x"], {"type": "note"}, set())
    assert parsed(["recv", "-n", "3", "--wait", "1s"]) == ([], {"n": "3", "wait": "1s"}, set())
    assert parsed(["ask", "bob", "?", "--timeout", "5s"]) == (["bob", "?"], {"timeout": "5s"}, set())
    assert parsed(["ps", "--json"]) == ([], {}, {"json"})


@pytest.mark.parametrize(
    "line",
    [
        ["send", "--help"],
        ["send"],
        ["send", "a", "b", "c"],
        ["send", "bob", "--nope"],
        ["send", "bob", "--type"],
        ["send", "bob", "--json=1"],
        ["recv", "bob"],
        ["ps", "--debug"],
        ["send", "-tnote", "bob", "hi"],
    ],
)
def test_everything_else_is_left_to_click(line: list[str]) -> None:
    assert parsed(line) is None


@pytest.mark.parametrize("verb", fast.OPTIONS)
def test_click_takes_every_option_of_the_short_way(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    known = {name: param for param in command.params for name in param.opts}
    for name, (_, takes_value) in fast.OPTIONS[verb].items():
        param = known[name]
        assert isinstance(param, click.Option)
        assert param.is_flag is not takes_value


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_speaks_json(verb: str) -> None:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    assert command.help
    assert command.get_short_help_str(200) == VERBS[verb]
    for one in command.commands.values() if isinstance(command, click.Group) else (command,):
        assert one.help
        assert {"--json", "--debug"} <= {name for param in one.params for name in param.opts}


def test_an_agents_command_loads_little_to_speak() -> None:
    # Given an agent's socket at which nobody listens, so that the whole way there is gone and then reported
    code = (
        "import os, sys; os.environ['MUSTER_SOCKET'] = '/nonexistent/socket'; from muster.cli import fast;"
        "status = fast.run(['send', 'bob', 'hi']);"
        f"sys.exit(repr([name for name in {HEAVY!r} if name in sys.modules]) if status == 1 else 'status %s' % status)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": _source()}
    )
    assert done.stderr.splitlines() == [
        "muster: nobody listens at /nonexistent/socket: No such file or directory",
        "[]",
    ]


def _source() -> str:
    import muster

    return str(next(iter(muster.__path__)).rsplit("/", 1)[0])
