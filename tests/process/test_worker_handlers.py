"""A worker calls handlers: values, exceptions, exits, blocks; the worker lives, or is replaced where it must."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from muster.agent.worker import EXIT_REPLACE
from muster.core.protocol import Assign, Cancel, Ready, Result
from muster.testing import eventually

from .worker_world import World, next_delivery, one_agent

HERE = str(Path(__file__).parent)


def agent(tmp_path: Path, name: str, **kind: Any) -> Any:
    return one_agent(tmp_path, handler=f"handlers_for_tests:{name}", cwd=HERE, **kind)


@pytest.mark.parametrize("name", ["double", "double_async"])
async def test_a_handlers_value_is_the_result_and_its_prints_the_output(tmp_path: Path, name: str) -> None:
    async with agent(tmp_path, name) as world:
        for number in (1, 2):
            result = await world.run("w", number, [number])
            assert (result.outcome, result.value, result.exit_status) == ("done", [number, number], None)
            said = result.stdout if name == "double" else result.stderr
            assert said == f"doubling [{number}]\n".encode()


async def test_prints_of_handlers_side_by_side_go_to_the_workers_log(tmp_path: Path) -> None:
    async with agent(tmp_path, "double", slots=2) as world:
        result = await world.run("w", 1, 4)
        assert (result.value, result.stdout) == (8, b"")
        assert (world.store / "agents" / "w" / "log").read_text() == "doubling 4\n"


async def test_a_handler_may_ask_for_the_task(tmp_path: Path) -> None:
    async with agent(tmp_path, "describe") as world:
        result = await world.run("w", 5, "x", attempt=3)
        socket = str(world.store / "sockets" / "w")
        assert result.value == {"number": 5, "attempt": 3, "input": "x", "agent": "w", "socket": socket}


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("fail", "x", "ValueError", "no good: x"),
        ("leave", 3, "SystemExit", "3"),
        ("interrupt", 0, "KeyboardInterrupt", ""),
        ("rude", 0, "Rude", "(an exception that cannot be shown)"),
    ],
)
async def test_whatever_a_handler_raises_is_its_tasks_failure_alone(
    tmp_path: Path, name: str, value: Any, kind: str, message: str
) -> None:
    async with agent(tmp_path, name) as world:
        for number in (1, 2):
            result = await world.run("w", number, value)
            assert result.outcome == "failed"
            assert result.error is not None
            assert (result.error["type"], result.error["message"]) == (kind, message)
            assert "muster/agent" not in result.error["traceback"]
        if name == "fail":
            assert "handlers_for_tests.py" in result.error["traceback"]


@pytest.mark.parametrize(
    ("name", "value", "code"), [("unserialisable", 0, "usage.body_encoding"), ("huge", 1 << 20, "usage.body_too_large")]
)
async def test_a_value_that_cannot_be_sent_is_a_failure_with_a_code(
    tmp_path: Path, name: str, value: Any, code: str
) -> None:
    async with agent(tmp_path, name) as world:
        result = await world.run("w", 1, value)
        assert result.outcome == "failed"
        assert result.error is not None
        assert result.error["code"] == code


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_module_here:f", "there is no module no_such_module_here"),
        ("handlers_for_tests:nothing", "nothing"),
        ("handlers_for_tests:not_callable", "is not a function"),
        ("handlers_for_tests", "package.module:function"),
    ],
)
async def test_a_handler_that_cannot_be_loaded_fails_tasks_and_not_the_worker(
    tmp_path: Path, reference: str, said: str
) -> None:
    async with one_agent(tmp_path, handler=reference, cwd=HERE) as world:
        for number in (1, 2):
            result = await world.run("w", number)
            assert result.error is not None
            assert (result.outcome, result.error["code"]) == ("failed", "usage.handler_not_found")
            assert said in result.error["message"]


async def test_a_handler_that_exits_the_process_is_seen_by_its_death(tmp_path: Path) -> None:
    async with agent(tmp_path, "die") as world:
        world.assign("w", 1, 9)
        assert await world.exited() == 9
        world.start(incarnation=2)
        assert (await world.expect(Ready)).holding == []


@pytest.mark.parametrize("name", ["block", "block_async"])
async def test_a_handler_that_does_not_end_costs_its_worker_not_its_result(tmp_path: Path, name: str) -> None:
    async with agent(tmp_path, name, timeout_s=0.2, kill_grace_s=0.2) as world:
        page = world.status("w")
        result = await world.run("w", 1, 600)
        assert result.outcome == "timeout"
        assert result.error is not None
        assert await world.exited() == EXIT_REPLACE
        assert page is not None and page.state in ("ready", "starting")
        world.start(incarnation=2)
        await world.expect(Ready)
        world.post("w", Assign(number=2, attempt=1, incarnation=2, input=0))
        assert (await world.expect(Result)).outcome == "done"


async def test_the_worker_lives_on_while_a_handler_blocks(tmp_path: Path) -> None:
    async with agent(tmp_path, "block_async") as world:
        world.assign("w", 1, 2.5)

        def beats() -> int:
            page = world.status("w")
            return page.heartbeat_ms if page is not None and page.state == "busy" else 0

        first = eventually(beats, 10)
        eventually(lambda: beats() > first, 10, "heartbeats go on")
        assert (await world.expect(Result)).outcome == "done"


async def test_an_async_handler_is_cancelled_at_its_time_limit(tmp_path: Path) -> None:
    async with agent(tmp_path, "wait", timeout_s=0.2) as world:
        result = await world.run("w", 1, 600)
        assert (result.outcome, result.stdout) == ("timeout", b"cancelled politely\n")
        assert (await world.run("w", 2, 0)).value == "slept"


async def test_an_async_handler_is_cancelled_when_asked(tmp_path: Path) -> None:
    async with agent(tmp_path, "wait") as world:
        world.assign("w", 1, 600)
        eventually(lambda: (page := world.status("w")) is not None and page.running == 1, 10)
        world.post("w", Cancel(number=1, attempt=1))
        assert (await world.expect(Result)).outcome == "cancelled"


async def test_processes_that_a_handler_leaves_behind_are_gone_before_its_result(tmp_path: Path) -> None:
    async with agent(tmp_path, "spawn") as world:
        for number in (1, 2):
            result = await world.run("w", number, "hello")
            assert (result.outcome, result.value) == ("done", "hello\n"), result.error
            assert world.below() == []


async def test_a_handler_speaks_as_its_agent(tmp_path: Path) -> None:
    async with agent(tmp_path, "speak") as world:
        friend = await world.open("friend")
        result = await world.run("w", 1)
        assert result.outcome == "done", result.error
        assert result.value["agent"] == "w"
        for expected in ("handler", "program"):
            delivery = await next_delivery(friend)
            assert (delivery.sender, delivery.body) == ("w", {"from": expected})
            delivery.ack()


async def test_handlers_run_side_by_side(tmp_path: Path) -> None:
    async with agent(tmp_path, "block", slots=4) as world:
        started = time.monotonic()
        for number in range(1, 5):
            world.assign("w", number, 1.0)
        for _ in range(4):
            assert (await world.expect(Result)).outcome == "done"
        assert time.monotonic() - started < 3.5


async def test_commands_and_handlers_share_a_worker(tmp_path: Path) -> None:
    from muster.core.spec import AgentSpec

    kinds = (
        AgentSpec(name="hand", handler="handlers_for_tests:spawn", cwd=HERE),
        AgentSpec(name="com", command=("sh", "-c", "(setsid sleep 300 &); echo hi")),
    )
    async with World(tmp_path / "world", *kinds, agents_per_worker=2) as world:
        world.start()
        for _ in kinds:
            await world.expect(Ready)
        for number in range(1, 21):
            world.assign(("hand", "com")[number % 2], number, "hello")
        for _ in range(20):
            result = await world.expect(Result)
            assert result.outcome == "done", result.error
            assert result.value == "hello\n" or result.stdout == b"hi\n"
        eventually(lambda: world.below() == [], 10)
