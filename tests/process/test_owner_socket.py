"""What an agent's command starts speaks as that agent; nobody else does."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from muster.agent.client import OwnerClient
from muster.core import limits
from muster.core.protocol import Cancel, Result
from muster.errors import (
    AskTimeoutError,
    BodyEncodingError,
    BodyTooLargeError,
    DeliveryStateError,
    ForbiddenError,
    OwnerGoneError,
    UnknownAgentError,
    UsageError,
)
from muster.testing import eventually, eventually_async

from .worker_world import PATIENCE_S, World, next_delivery, one_agent

PRELUDE = """
import json, os, sys
from muster.agent.client import OwnerClient
from muster import errors
def show(value): print(json.dumps(value), flush=True)
def code(call, *args, **kwargs):
    try: call(*args, **kwargs)
    except errors.MusterError as error: return error.code
"""


def program(body: str) -> tuple[str, ...]:
    """A command that runs `body` in Python. (It must not contain an empty pair of braces: that is a placeholder.)"""
    return (sys.executable, "-c", PRELUDE + body)


async def said(world: World, number: int = 1, value: Any = "x") -> Any:
    """What the agent's program printed, as JSON."""
    result = await world.run("w", number, value)
    assert result.outcome == "done", result.stderr.decode()
    return [json.loads(line) for line in result.stdout.decode().splitlines()]


async def test_a_command_waits_for_room_in_an_inbox_that_wants_its_senders_to_wait(tmp_path: Path) -> None:
    body = f"""
with OwnerClient() as me:
    for number in range({limits.LANE_CREDIT + 50}): me.send("friend", number)
    me.send("friend", "last", wait_s=60)
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        friend.transport.set_overflow("wait")
        running = asyncio.create_task(said(world))
        await eventually_async(lambda: friend.depth() == limits.LANE_CREDIT, PATIENCE_S)
        heard: list[Any] = []
        while "last" not in heard:
            delivery = await next_delivery(friend)
            heard.append(delivery.body)
            delivery.ack()
        assert heard == [*range(limits.LANE_CREDIT + 50), "last"]
        await running


async def test_a_command_sends_and_receives_as_its_agent(tmp_path: Path) -> None:
    body = """
with OwnerClient() as me:
    show(me.whoami())
    show(me.send("friend", {"n": 1}, type="greeting"))
    show(me.send("friend", b"\\x00raw", message_id="mine"))
    message, = me.receive(wait_s=20)
    show(message)
    show(me.ack(message))
    show(me.ls())
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        receipt = friend.post("w", {"hello": "w"}, type="greeting")
        who, sent, own, message, acked, agents = await said(world)
        assert who == {"agent": "w", "fleet": "world", "store": str(world.store), "task": 1, "attempt": 1}
        first, second = await next_delivery(friend), await next_delivery(friend)
        assert (first.sender, first.type, first.body, first.seq, first.id) == (
            "w",
            "greeting",
            {"n": 1},
            sent["seq"],
            sent["id"],
        )
        assert (second.body, second.id, own["id"]) == (b"\0raw", "mine", "mine")
        assert (message["sender"], message["type"], message["body"], message["attempt"]) == (
            "friend",
            "greeting",
            {"hello": "w"},
            1,
        )
        assert (acked, receipt.state) == (1, "acked")
        assert "w" in agents and "coordinator" in agents
        first.ack()
        second.ack()


async def test_a_command_asks_and_is_asked(tmp_path: Path) -> None:
    body = """
with OwnerClient() as me:
    show(me.ask("friend", {"n": 2}, timeout_s=20)["body"])
    show(code(me.ask, "operator", 1, timeout_s=0.05))
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        world.assign("w", 1)
        question = await next_delivery(friend)
        assert (question.sender, question.type, question.body) == ("w", "ask", {"n": 2})
        question.reply({"n": 4})
        question.ack()
        result = await world.expect(Result)
        assert result.stdout.decode().splitlines() == ['{"n": 4}', f'"{AskTimeoutError.code}"'], result.stderr


async def test_what_was_received_and_not_acked_goes_to_the_next_one(tmp_path: Path) -> None:
    body = """
first = OwnerClient()
taken = first.receive(3, wait_s=20)
while len(taken) < 3: taken += first.receive(3, wait_s=20)
first.ack(taken[1])
first.close()
with OwnerClient() as second:
    again = second.receive(5, wait_s=20)
    while len(again) < 2: again += second.receive(5, wait_s=20)
    show([message["body"] for message in again])
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        receipts = [friend.post("w", text) for text in ("a", "b", "c")]
        assert await said(world) == [["a", "c"]]
        # The task is over, nobody acked them: they stay for whoever comes.
        assert [receipt.state for receipt in receipts] == ["taken", "acked", "taken"]


async def test_waiting_for_a_message_ends_at_its_time_or_with_a_message(tmp_path: Path) -> None:
    body = """
import time
with OwnerClient() as me:
    show(me.receive(wait_s=0.05))
    me.send("friend", "ready")
    show([message["body"] for message in me.receive(wait_s=20)])
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        world.assign("w", 1)
        assert (await next_delivery(friend)).body == "ready"
        friend.post("w", "late")
        result = await world.expect(Result)
        assert result.stdout.decode().splitlines() == ["[]", '["late"]'], result.stderr


async def test_no_more_is_taken_than_was_asked_for(tmp_path: Path) -> None:
    body = """
with OwnerClient() as me:
    me.ack(*me.receive(1, wait_s=20))
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        receipts = [friend.post("w", number) for number in range(5)]
        for number in (1, 2):
            assert (await world.run("w", number, "x")).outcome == "done"
        assert [receipt.state for receipt in receipts] == ["acked", "acked", "stored", "stored", "stored"]


async def test_refusals_are_the_errors_of_the_bus(tmp_path: Path) -> None:
    body = """
with OwnerClient() as me:
    show(code(me.send, "nobody"))
    show(code(me.send, "../w"))
    show(code(me.send, "friend", "x" * (1 << 20)))
    show(code(me.send, "coordinator", 0, type="task.result"))
    show(code(me.send, "friend", 0, type="agent.drain"))
    show(code(me.send, "friend", float("nan")))
    show(code(me.send, "friend", object()))
    show(code(me.request, "dance"))
    show(code(me.request, "send", to=5))
    show(code(me.request, "send", to="friend", body_b64="&"))
    show(code(me.request, "ack", handles=["77"]))
    show(me.whoami()["agent"])
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        *codes, who = await said(world)
        assert codes == [
            UnknownAgentError.code,
            "usage.invalid_name",
            BodyTooLargeError.code,
            ForbiddenError.code,
            ForbiddenError.code,
            BodyEncodingError.code,
            BodyEncodingError.code,
            UsageError.code,
            UsageError.code,
            BodyEncodingError.code,
            DeliveryStateError.code,
        ]
        assert who == "w", "the connection outlives every refusal"


async def test_lines_that_are_no_requests_are_answered(tmp_path: Path) -> None:
    body = """
import socket
def say(raw):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["MUSTER_SOCKET"])
    connection.settimeout(20)
    try: connection.sendall(raw)
    except BrokenPipeError: pass
    answer = b""
    try:
        while not answer.endswith(b"\\n"): answer += connection.recv(65536)
    except ConnectionResetError: pass
    return json.loads(answer)["error"]["code"]
show(say(b"hello\\n"))
show(say(b"\\xff\\xfe\\n"))
show(say(b"[" * 100000 + b"\\n"))
show(say(b"{ }\\n"))
show(say(b"x" * (3 << 20)))
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        assert await said(world) == [UsageError.code] * 5


@pytest.mark.parametrize("way", ["shell", "double fork", "session", "clean environment"])
async def test_every_process_below_a_task_speaks_for_it(tmp_path: Path, way: str) -> None:
    code = 'from muster.agent.client import OwnerClient; OwnerClient(sys.argv[1]).send("friend", sys.argv[2])'
    start = {
        "shell": 'subprocess.run(["sh", "-c", "true; \\"$@\\"; true", "sh", *command])',
        "double fork": 'subprocess.run(["sh", "-c", "\\"$@\\" &", "sh", *command])',
        "session": 'subprocess.run(["setsid", *command])',
        "clean environment": "subprocess.run(command, env=dict())",
    }[way]
    body = f"""
import subprocess, time
command = [sys.executable, "-c", 'import sys; {code}', os.environ["MUSTER_SOCKET"], {way!r}]
{start}
OwnerClient().receive(wait_s=20)
"""
    async with one_agent(tmp_path, command=program(body)) as world:
        friend = await world.open("friend")
        world.assign("w", 1)
        delivery = await next_delivery(friend)
        assert (delivery.sender, delivery.body) == ("w", way)
        friend.post("w", "enough")
        assert (await world.expect(Result)).outcome == "done"


async def test_a_process_that_is_no_descendant_is_refused(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=program("OwnerClient().receive(wait_s=600)")) as world:
        path = world.store / "sockets" / "w"
        world.assign("w", 1)
        eventually(path.exists, PATIENCE_S)
        assert path.stat().st_mode & 0o777 == 0o600
        script = PRELUDE + f"show(code(lambda: OwnerClient({str(path)!r}).whoami()))"
        # The marks of the task in its environment do not help a process that hangs elsewhere.
        env = {
            **os.environ,
            "MUSTER_AGENT": "w",
            "MUSTER_TASK": "1",
            "MUSTER_ATTEMPT": "1",
            "MUSTER_STORE_ID": world.spec.store_id,
        }
        run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30)
        assert run.stdout.strip() == f'"{ForbiddenError.code}"', run.stderr
        world.post("w", Cancel(number=1, attempt=1))
        await world.expect(Result)
        with OwnerClient(str(path)) as me, pytest.raises(ForbiddenError):  # this process is the worker's parent
            me.whoami()


async def test_agents_of_one_worker_cannot_speak_as_each_other(tmp_path: Path) -> None:
    from muster.core.protocol import Ready
    from muster.core.spec import AgentSpec

    body = """
other = os.environ["MUSTER_SOCKET"][:-1] + {"1": "2", "2": "1"}[os.environ["MUSTER_SOCKET"][-1]]
with OwnerClient() as me:
    me.send("friend", "up")
    me.receive(wait_s=20)
    show([me.whoami()["agent"], code(lambda: OwnerClient(other).whoami())])
    me.send("friend", "seen")
    me.receive(wait_s=20)
"""
    kind = AgentSpec(name="w", count=2, command=program(body))
    async with World(tmp_path / "world", kind, agents_per_worker=2) as world:
        friend = await world.open("friend")
        world.start()
        for number in (1, 2):
            await world.expect(Ready)
            world.assign(f"w-{number}", number)
        for _ in range(2):  # both run, both say so, both look, both end: neither looks at a socket nobody has made yet
            for _ in range(2):
                await next_delivery(friend)
            for number in (1, 2):
                friend.post(f"w-{number}", "go on")
        results = {(await world.expect_from(Result))[1].stdout for _ in range(2)}
        assert results == {f'["w-{number}", "{ForbiddenError.code}"]\n'.encode() for number in (1, 2)}


async def test_a_store_with_a_long_path_has_sockets_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    body = "with OwnerClient() as me: show(me.whoami()['agent'])"
    async with World(deep / "world", *_kind(body)) as world:
        await world.started()
        assert len(str(world.store / "sockets" / "w")) > 108
        assert await said(world) == ["w"]


def _kind(body: str) -> tuple[Any, ...]:
    from muster.core.spec import AgentSpec

    return (AgentSpec(name="w", command=program(body)),)


async def test_there_is_no_socket_without_a_task(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("true",)) as world:
        path = world.store / "sockets" / "w"
        assert not path.exists()
        with pytest.raises(OwnerGoneError):
            OwnerClient(str(path))
        await world.run("w", 1)
        await world.drained("w")
        assert await world.exited() == 0
        assert not path.exists()


async def test_an_owner_that_goes_away_is_said(tmp_path: Path) -> None:
    body = """
me = OwnerClient()
show(code(lambda: (me.send("friend", "up"), me.receive(wait_s=60))))
open(sys.argv[1], "w").write("seen")
"""
    async with one_agent(tmp_path, command=(*program(body), "{}")) as world:
        friend = await world.open("friend")
        world.assign("w", 1, str(tmp_path / "seen"))
        await next_delivery(friend)
        pid = world.pids["w"]
        os.kill(pid, 9)
        assert await world.exited() == -9
        eventually((tmp_path / "seen").exists, PATIENCE_S)


def test_the_client_is_light() -> None:
    """Importing it loads nothing that a short script would feel."""
    code = "import sys; import muster.agent.client; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "msgspec", "uvloop", "click", "subprocess", "tempfile"} & set(loaded)


def test_without_an_agent_the_client_says_so() -> None:
    with pytest.raises(UsageError, match="MUSTER_SOCKET is not set"):
        OwnerClient()


def test_a_path_where_nobody_listens_is_an_owner_gone(tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    with pytest.raises(OwnerGoneError):
        OwnerClient(str(left))
