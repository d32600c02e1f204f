"""What handlers print lands in their own agent's log, however many share the process, and no log grows without bound."""

from __future__ import annotations

import os
from pathlib import Path

from muster.agent.log import FILES, LOG_BYTES_MAX
from muster.core.protocol import Ready, Result
from muster.core.spec import AgentSpec
from muster.testing import eventually

from .worker_world import World, one_agent

HERE = str(Path(__file__).parent)


async def test_agents_of_one_process_have_a_log_each(tmp_path: Path) -> None:
    kind = AgentSpec(name="w", count=3, handler="handlers_for_tests:double", cwd=HERE)
    async with World(tmp_path / "world", kind, agents_per_worker=3) as world:
        world.start()
        for _ in range(3):
            await world.expect(Ready)
        for number in (1, 2, 3):
            world.assign(f"w-{number}", number, number)
        for _ in range(3):
            await world.expect(Result)
        for number in (1, 2, 3):
            assert (world.store / "agents" / f"w-{number}" / "log").read_text() == f"doubling {number}\n"


async def test_a_log_that_grows_behind_the_workers_back_is_rotated_all_the_same(tmp_path: Path) -> None:
    async with one_agent(tmp_path, handler="handlers_for_tests:chatter", cwd=HERE, slots=2) as world:
        folder = world.store / "agents" / "w"
        for number in range(1, 8):
            await world.run("w", number, 1 + LOG_BYTES_MAX // 1024)
            eventually(lambda: os.stat(folder / "log").st_size < LOG_BYTES_MAX, 20.0, "rotated with the next heartbeat")
        assert sorted(name for name in os.listdir(folder) if name.startswith("log")) == sorted(FILES)


async def test_a_log_is_not_rotated_under_a_handler_whose_output_is_captured(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with one_agent(tmp_path, handler="handlers_for_tests:say_later", cwd=HERE) as world:
        log = world.store / "agents" / "w" / "log"
        world.assign("w", 1, str(gate))
        before = world.page("w", lambda page: page.state == "busy").heartbeat_ms
        with log.open("ab") as file:
            file.write(bytes(LOG_BYTES_MAX))
        world.page("w", lambda page: page.heartbeat_ms >= before + 2_000)  # two beats have looked at it
        gate.touch()
        result = await world.expect(Result)
        assert result.stdout == b"said later\n"
        assert b"said" not in log.read_bytes()
        world.page("w", lambda _: log.stat().st_size < LOG_BYTES_MAX)  # afterwards it is


async def test_a_captured_handlers_output_is_no_part_of_the_log(tmp_path: Path) -> None:
    async with one_agent(tmp_path, handler="handlers_for_tests:chatter", cwd=HERE) as world:
        result = await world.run("w", 1, 10)
        assert result.stdout_bytes == 10 * 1024
        assert (world.store / "agents" / "w" / "log").stat().st_size == 0
