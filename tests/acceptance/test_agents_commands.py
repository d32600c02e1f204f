"""What an agent's command starts speaks as that agent; nobody else does, whatever they know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

import muster
from muster.agent.client import OwnerClient
from muster.errors import ForbiddenError
from muster.testing import eventually

from .place import PATIENCE_S, Muster, Place

FLEET = "crew"


class Crew:
    """A standing fleet: `mate-1` and `mate-2`, whose tasks are lines of shell, and `oracle`, an inbox for a program of its own."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.store = place.root / FLEET
        self._submitted = 0
        file = place.script(
            "fleet.toml",
            f'[fleet]\nname = "{FLEET}"\ngrace = "5s"\n'
            '[agents.mate]\ncount = 2\ncommand = ["sh", "-c", "{}"]\n[agents.oracle]\n',
        )
        up = place.carry_out("up", "-d", file)
        assert up.process.returncode == 0, up.errors

    def work_on(self, *scripts: str) -> None:
        """Give the fleet tasks, each a shell script."""
        tasks = [[self._submitted + at, script, "mate", None] for at, script in enumerate(scripts, 1)]
        self._submitted += len(scripts)
        self.muster("send", "coordinator", "--type", "task.submit", "--json-body", json.dumps({"tasks": tasks}))

    def muster(self, *words: str, env: dict[str, str] | None = None) -> Muster:
        """A command line of the operator that succeeds."""
        done = self.place.carry_out(*words, "--fleet", FLEET, env=env)
        assert done.process.returncode == 0, (words, done.process.returncode, done.output, done.errors)
        return done

    def next_message(self) -> dict[str, Any]:
        """The operator's next message from an agent."""
        while True:
            told: dict[str, Any] = json.loads(self.muster("recv", "--as", "operator", "--wait", "20s", "--json").output)
            if told["type"] != "task.output":  # what a task has printed, told by the coordinator
                return told

    def json_of(self, name: str) -> Any:
        """A file that a task has written."""
        return json.loads((self.place.work / name).read_text())


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """One fleet for all tests of this module: their tasks have no state in common but the names of files."""
    place = Place()
    try:
        crew = Crew(place)
        yield crew
        down = place.carry_out("down", FLEET)
        assert down.process.returncode == 0, down.errors
        assert place.processes() == {}
        assert [name for name in place.files() if name.endswith(".sock") or "/sockets/" in name] == []
    finally:
        place.close()


def together(name: str) -> str:
    """The beginning of a task that waits until another such task has begun: they run on two agents."""
    return f": > {name}.$MUSTER_AGENT; until test $(ls {name}.* | wc -l) = 2; do sleep 0.02; done;"


def test_a_command_sends_as_its_agent(crew: Crew) -> None:
    crew.work_on(*[f'{together("send")} muster send operator "$MUSTER_AGENT says {word}"' for word in ("one", "two")])
    messages = [crew.next_message(), crew.next_message()]
    assert {message["sender"] for message in messages} == {"mate-1", "mate-2"}
    assert all(message["body"].startswith(f"{message['sender']} says ") for message in messages)
    assert {message["body"].split()[-1] for message in messages} == {"one", "two"}
    assert {message["type"] for message in messages} == {"message"}


def test_a_command_receives_what_was_sent_to_its_agent_and_answers(crew: Crew) -> None:
    for mate in ("mate-1", "mate-2"):
        crew.muster("send", mate, f"for {mate}")
    answer = together("recv") + ' muster send operator "$MUSTER_AGENT heard $(muster recv --wait 20s)"'
    crew.work_on(answer, answer)
    heard = {(message := crew.next_message())["sender"]: message["body"] for _ in range(2)}
    assert heard == {mate: f"{mate} heard operator: for {mate}" for mate in ("mate-1", "mate-2")}


def test_a_command_finds_an_empty_inbox_empty(crew: Crew) -> None:
    crew.work_on('muster recv; muster send operator "status $?"')
    assert crew.next_message()["body"] == "status 1"


def test_a_command_asks_and_is_known_to_whoever_answers(crew: Crew) -> None:
    async def answer_one() -> tuple[str, str]:
        async with muster.join("oracle", store=crew.store) as oracle:
            delivery = await oracle.receive(timeout_s=PATIENCE_S)
            assert delivery is not None
            async with delivery:
                delivery.reply({"you": delivery.sender})
            return delivery.sender, delivery.body

    crew.work_on(
        'muster ask oracle "who am I?" --timeout 20s --json > reply.json; muster send operator "$? $MUSTER_AGENT"'
    )
    sender, body = asyncio.run(answer_one())
    assert body == "who am I?"
    told = crew.next_message()
    assert (told["sender"], told["body"]) == (sender, f"0 {sender}")
    reply = crew.json_of("reply.json")
    assert (reply["sender"], reply["body"]) == ("oracle", {"you": sender})


def test_a_command_asks_the_coordinator_how_the_fleet_is(crew: Crew) -> None:
    crew.work_on(
        'muster ask coordinator -t fleet.status --json-body "{}" --json > status.json; muster send operator "$?"'
    )
    assert crew.next_message()["body"] == "0"
    status = crew.json_of("status.json")["body"]
    assert status["fleet"] == FLEET
    assert {agent["agent"] for agent in status["agents"]} >= {"mate-1", "mate-2"}


def test_depth_and_detachment_do_not_change_who_speaks(crew: Crew) -> None:
    """Below other programs; and two forks away, in a session of its own, with nothing in its environment but the way."""
    crew.work_on(
        'python3 -c \'import subprocess; subprocess.run(["sh", "-c", "sh -c \\"muster send operator deep\\""])\'\n'
        '(setsid env -i PATH="$PATH" MUSTER_SOCKET="$MUSTER_SOCKET" sh -c "muster send operator detached; : > detached" &)\n'
        "while ! test -e detached; do sleep 0.02; done"
    )
    messages = [crew.next_message(), crew.next_message()]
    assert [message["body"] for message in messages] == ["deep", "detached"]
    assert messages[0]["sender"] == messages[1]["sender"]
    assert messages[0]["sender"] in {"mate-1", "mate-2"}


def test_a_command_cannot_speak_as_somebody_else_nor_in_the_words_of_muster(crew: Crew) -> None:
    crew.work_on(
        'muster send operator "forged" --as operator --json > as.json; a=$?\n'
        'muster send coordinator -t task.result --json-body "{}" --json > verb.json; b=$?\n'
        'muster send operator "$a $b"'
    )
    told = crew.next_message()
    assert told["sender"] in {"mate-1", "mate-2"}
    assert told["body"] == "1 1"
    assert {crew.json_of(name)["error"]["code"] for name in ("as.json", "verb.json")} == {"security.forbidden"}


def leaking(name: str) -> str:
    """A task that writes down its environment, the socket's address in it, and goes on when it is let."""
    return f"env > {name}.tmp; mv {name}.tmp {name}.env; while ! test -e {name}.go; do sleep 0.02; done;"


def leaked_by(place: Place, name: str) -> dict[str, str]:
    """What that task has written down."""
    path = place.work / f"{name}.env"
    eventually(path.exists, PATIENCE_S, "the task has written down its environment")
    lines = [line.partition("=") for line in path.read_text().splitlines()]
    leaked = {key: value for key, _, value in lines if key.startswith("MUSTER_")}
    assert {"MUSTER_SOCKET", "MUSTER_AGENT", "MUSTER_TASK", "MUSTER_ATTEMPT", "MUSTER_STORE_ID"} <= leaked.keys()
    return leaked


def test_a_process_that_no_task_started_is_refused_whatever_it_knows(crew: Crew) -> None:
    """It belongs to the same user, knows the socket, and carries every mark of a living task in its environment."""
    crew.work_on(leaking("leak") + ' muster send operator "the agent itself"')
    leaked = leaked_by(crew.place, "leak")
    for words in (["send", "operator", "forged"], ["recv"], ["ask", "oracle", "forged"]):
        refused = crew.place.carry_out(*words, "--json", env=leaked)
        assert refused.process.returncode == 1, (words, refused.output, refused.errors)
        assert json.loads(refused.output)["error"]["code"] == "security.forbidden"
    with OwnerClient(leaked["MUSTER_SOCKET"]) as client, pytest.raises(ForbiddenError):
        client.send("operator", "forged")
    said = crew.place.carry_out("send", "operator", "forged", env=leaked)
    assert (said.output, len(said.errors.splitlines())) == (b"", 1)
    (crew.place.work / "leak.go").touch()
    assert crew.next_message()["body"] == "the agent itself", "nothing forged was stored before it"


# --------------------------------------------------------------------------- inside `muster run`


def test_commands_of_a_run_talk_to_each_other(place: Place) -> None:
    """Two tasks on two agents: each sends to the other one, waits for its message, and prints who it came from."""
    script = place.script(
        "talk.sh",
        "case $MUSTER_AGENT in w-1) other=w-2;; *) other=w-1;; esac\n"
        'muster send $other "greetings from $MUSTER_AGENT" >&2 || exit\n'
        "muster recv --wait 20s --json",
    )
    run = place.carry_out("run", "-j", "2", "sh", script, ":::", "a", "b")
    assert run.process.returncode == 0, run.errors
    heard = [json.loads(line) for line in run.output.splitlines()]
    assert {message["sender"] for message in heard} == {"w-1", "w-2"}
    assert all(message["body"] == f"greetings from {message['sender']}" for message in heard)
    place.assert_nothing_is_left()


def test_the_operator_of_a_run_sees_what_commands_send_with_their_names(place: Place) -> None:
    run = place.carry_out("run", "-j", "2", "sh", "-c", 'muster send operator "note $0" > /dev/null', ":::", "x", "y")
    assert run.process.returncode == 0, run.errors
    notes = sorted(line for line in run.errors.splitlines() if "note" in line)
    assert {note.partition(": ")[2] for note in notes} == {"note x", "note y"}
    assert {note.partition(": ")[0] for note in notes} <= {"w-1", "w-2"}
    place.assert_nothing_is_left()


def test_a_stranger_is_refused_by_the_agents_of_a_run(place: Place) -> None:
    run = place.start("run", "-j", "1", "sh", "-c", leaking("leak"), ":::", "x")
    refused = place.carry_out("send", "operator", "forged", "--json", env=leaked_by(place, "leak"))
    assert json.loads(refused.output)["error"]["code"] == "security.forbidden"
    (place.work / "leak.go").touch()
    assert run.end() == 0, run.errors
    assert "forged" not in run.errors
    place.assert_nothing_is_left()
