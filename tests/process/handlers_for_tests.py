"""Handlers that worker tests run, good ones and bad ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Any

from muster.agent.task import Task


def double(value: Any) -> Any:
    print("doubling", value)
    return value * 2


async def double_async(value: Any) -> Any:
    await asyncio.sleep(0.01)
    print("doubling", value, file=sys.stderr)
    return value * 2


def describe(task: Task) -> dict[str, Any]:
    return {
        "number": task.number,
        "attempt": task.attempt,
        "input": task.input,
        "agent": task.agent,
        "socket": task.socket,
    }


def fail(value: Any) -> None:
    raise ValueError(f"no good: {value}")


def leave(value: Any) -> None:
    sys.exit(int(value))


async def interrupt(value: Any) -> None:
    raise KeyboardInterrupt


def die(value: Any) -> None:
    os._exit(int(value))


def unserialisable(value: Any) -> Any:
    return object()


def huge(value: Any) -> bytes:
    return bytes(int(value))


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def rude(value: Any) -> None:
    raise Rude


def block(value: Any) -> None:
    time.sleep(float(value))


async def block_async(value: Any) -> None:
    time.sleep(float(value))


async def wait(value: Any) -> str:
    try:
        await asyncio.sleep(float(value))
    except asyncio.CancelledError:
        print("cancelled politely", flush=True)
        raise
    return "slept"


def spawn(value: Any) -> str:
    """Start a process, wait for one, leave one behind."""
    subprocess.Popen(["sleep", "600"], start_new_session=True).returncode = 0
    return subprocess.run(["echo", str(value)], capture_output=True, text=True, check=True).stdout


def speak(value: Any) -> Any:
    """As the agent, through its owner socket, from the handler and from a program it starts."""
    from muster.agent.client import OwnerClient

    with OwnerClient() as me:
        me.send("friend", {"from": "handler"})
        code = "from muster.agent.client import OwnerClient; OwnerClient().send('friend', {'from': 'program'})"
        subprocess.run([sys.executable, "-c", code], check=True)
        return me.whoami()


not_callable = 1


def hold(value: Any) -> int:
    held = b"x" * (int(value) * 1_000_000)
    if held:
        time.sleep(600)
    return len(held)


def chatter(value: Any) -> None:
    """Say much, by descriptor: nobody counts these bytes."""
    for _ in range(int(value)):
        os.write(1, b"x" * 1023 + b"\n")


def say_later(gate: Any) -> None:
    while not os.path.exists(gate):
        time.sleep(0.02)
    print("said later")
