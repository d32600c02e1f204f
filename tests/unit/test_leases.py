"""Leases over a real bus and a real coordinator: had, renewed, lost, freed by proof, kept over the coordinator's death."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import time

import pytest
from tests.unit.coordinator_world import CoordinatorWorld

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.core.protocol import LockListAsk
from muster.errors import (
    FleetNotRunningError,
    LockDeadlockError,
    LockHeldError,
    LockLostError,
    LockTimeoutError,
    UsageError,
)
from muster.security.keys import Keyring, load_master
from muster.testing.waiting import eventually_async

#: Nothing here takes so long unless it hangs.
PATIENCE_S = 10.0


class Fleet(CoordinatorWorld):
    coordinator: asyncio.Task[int]


@contextlib.asynccontextmanager
async def fleet(tmp_path, *names):
    """A coordinator, and the buses of `names`."""
    world = Fleet(tmp_path, agents=1, run=False)
    buses = []
    try:
        world.coordinator = world.start()
        for name in names:
            add_agent(world.store, name)
            buses.append(await Bus.open(world.store, name, world.keyring(name)))
        await eventually_async(lambda: bool(world.alive), PATIENCE_S)
        yield world, *buses
    finally:
        for bus in buses:
            await bus.close()
        await world.close()


async def listed(bus):
    reply = await bus.ask("coordinator", LockListAsk(), type="lock.list", timeout_s=PATIENCE_S)
    return [(row["agent"], row["state"], row["names"]) for row in reply.body["facts"]["locks"]]


async def restart(world):
    """SIGKILL, as far as files and sockets can see it, and the next coordinator."""
    world.coordinator.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await world.coordinator
    world.coordinator = world.start()


async def test_a_lock_is_had_by_one_at_a_time_with_growing_tokens(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, bob):
        tokens, inside = [], 0

        async def work(bus):
            nonlocal inside
            async with bus.lock("counter", timeout_s=PATIENCE_S) as lease:
                inside += 1
                assert inside == 1, "two are in the block at once"
                tokens.append(lease.token)
                await asyncio.sleep(0)
                assert lease.is_held
                inside -= 1
            assert not lease.is_held

        await asyncio.gather(*(work(bus) for bus in (alice, bob) for _ in range(10)))
        assert tokens == sorted(set(tokens))
        assert len(tokens) == 20
        assert await listed(alice) == []


async def test_who_does_not_want_to_wait_is_told_who_holds_it(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, bob):
        held = await alice.lock("src/**")
        with pytest.raises(LockHeldError, match=r"'src/a' is held by alice as 'src/\*\*'"):
            await bob.lock("src/a", timeout_s=0)
        with pytest.raises(LockTimeoutError, match="held by alice"):
            await bob.lock("src/a", timeout_s=0.2)
        assert await listed(bob) == [("alice", "held", ["src/**"])]
        await held.release()
        lease = await bob.lock("src/a", timeout_s=0)
        await lease.release()
        await lease.release()
        with pytest.raises(LockLostError):
            lease.check()


async def test_whoever_is_cancelled_while_waiting_stands_in_line_no_more(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, bob):
        await alice.lock("n")
        waiting = asyncio.create_task(bob.lock("n")._acquire())
        async with asyncio.timeout(PATIENCE_S):
            while len(await listed(alice)) < 2:
                pass
            waiting.cancel()
            while len(await listed(alice)) > 1:
                pass


async def test_the_coordinators_death_costs_no_lease_and_those_who_wait_are_served_by_the_next(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (world, alice, bob):
        lease = await alice.lock("n", ttl_s=1.0)
        waiting = asyncio.create_task(bob.lock("n")._acquire())
        async with asyncio.timeout(PATIENCE_S):
            while len(await listed(alice)) < 2:
                pass
        await restart(world)
        await asyncio.sleep(2.5)  # longer than the lease holds unrenewed: the subject is the passing of time
        lease.check()
        assert not waiting.done()
        await lease.release()
        async with asyncio.timeout(PATIENCE_S):
            other = await waiting
        assert other.token == lease.token + 1
        await other.release()


async def test_while_the_coordinator_is_dead_a_holder_keeps_its_lease(tmp_path):
    async with fleet(tmp_path, "alice") as (world, alice):
        lease = await alice.lock("n", ttl_s=1.0)
        world.coordinator.cancel()
        await asyncio.gather(world.coordinator, return_exceptions=True)
        await asyncio.sleep(2.5)  # as above
        lease.check()
        world.coordinator = world.start()
        async with asyncio.timeout(PATIENCE_S):
            assert await listed(alice) == [("alice", "held", ["n"])]
        lease.check()


async def test_a_holder_that_stood_still_for_longer_than_its_lease_is_interrupted(tmp_path, monkeypatch):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, bob):
        reached = False
        real = time.monotonic
        with pytest.raises(LockLostError, match="stopped"):
            async with alice.lock("n", ttl_s=1.0) as lease:
                monkeypatch.setattr(time, "monotonic", lambda: real() + 5)  # as if it had been stopped
                assert not lease.is_held
                await asyncio.sleep(PATIENCE_S)
                reached = True
        assert not reached
        monkeypatch.undo()
        async with asyncio.timeout(PATIENCE_S), bob.lock("n"):
            pass


async def test_a_lease_that_the_coordinator_took_away_interrupts_its_block(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, _bob):
        with pytest.raises(LockLostError, match="not renewed"):
            async with alice.lock("n", ttl_s=1.0) as lease, asyncio.timeout(PATIENCE_S):
                lock_id, lease.lock_id = lease.lock_id, "another lock's id"
                assert lock_id
                await asyncio.sleep(PATIENCE_S * 2)


async def test_an_error_of_the_block_is_not_replaced_by_the_loss_of_its_lease(tmp_path, monkeypatch):
    async with fleet(tmp_path, "alice") as (_, alice):
        real = time.monotonic
        with pytest.raises(ZeroDivisionError):
            async with alice.lock("n", ttl_s=1.0):
                monkeypatch.setattr(time, "monotonic", lambda: real() + 5)
                raise ZeroDivisionError
        monkeypatch.undo()


async def test_nested_blocks_of_two_agents_do_not_wait_for_each_other_for_ever(tmp_path):
    async with fleet(tmp_path, "alice", "bob") as (_, alice, bob):
        both = asyncio.Barrier(2)

        async def nest(bus, first, second):
            async with bus.lock(first):
                await both.wait()
                async with bus.lock(second, timeout_s=PATIENCE_S):
                    return "had both"

        ends = await asyncio.gather(nest(alice, "a", "b"), nest(bob, "b", "a"), return_exceptions=True)
        assert [type(end) for end in ends if not isinstance(end, str)] == [LockDeadlockError]
        assert "had both" in ends


async def test_blocks_beside_each_other_in_one_agent_are_no_deadlock(tmp_path):
    async with fleet(tmp_path, "alice") as (_, alice):

        async def work():
            async with alice.lock("n"):
                await asyncio.sleep(0)

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(work() for _ in range(5)))


async def test_what_cannot_be_locked_is_said_before_anybody_is_asked(tmp_path):
    async with fleet(tmp_path, "alice") as (_, alice):
        for names in ([], ["["], ["a/../b"], [""]):
            with pytest.raises(UsageError):
                await alice.lock(*names)


async def test_a_store_without_a_coordinator_says_so(tmp_path):
    store = create_store(tmp_path / "store")
    add_agent(store, "alice")
    async with await Bus.open(store, "alice", Keyring.from_master(load_master(store), "alice")) as alice:
        with pytest.raises(FleetNotRunningError):
            await alice.lock("n")
        add_agent(store, "coordinator")
        with pytest.raises(LockTimeoutError, match="no coordinator answered"):
            await alice.lock("n", timeout_s=0.1)


HOLDER = """
import asyncio, sys
import muster
from muster.bus.bus import Bus

async def main():
    async with muster.join(sys.argv[2], store=sys.argv[1]) as me:
        await me.lock("n", ttl_s=600)
        print("held", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("coordinator_dies", [False, True])
async def test_sigkill_of_a_holder_frees_its_locks_within_a_second_also_under_a_new_coordinator(
    tmp_path, coordinator_dies
):
    async with fleet(tmp_path, "bob") as (world, bob):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(HOLDER), str(world.store), "alice", stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                assert await process.stdout.readline() == b"held\n"
            if coordinator_dies:
                await restart(world)
                async with asyncio.timeout(PATIENCE_S):
                    assert await listed(bob) == [("alice", "held", ["n"])]
            waiting = asyncio.create_task(bob.lock("n")._acquire())
            async with asyncio.timeout(PATIENCE_S):
                while len(await listed(bob)) < 2:
                    pass
            assert not waiting.done()
            killed_s = asyncio.get_running_loop().time()
            process.kill()
            async with asyncio.timeout(PATIENCE_S):
                lease = await waiting
            assert asyncio.get_running_loop().time() - killed_s <= 1.0
            await lease.release()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_the_death_of_an_agents_worker_frees_its_locks(tmp_path):
    async with fleet(tmp_path, "bob") as (world, bob):
        (name,) = world.alive
        agent, _ = world.agents[name]
        await eventually_async(lambda: hasattr(agent, "bus"), PATIENCE_S)
        await agent.bus.lock("n", ttl_s=600)
        with pytest.raises(LockHeldError):
            await bob.lock("n", timeout_s=0)
        await world.kill(name)
        async with asyncio.timeout(PATIENCE_S), bob.lock("n"):
            pass
