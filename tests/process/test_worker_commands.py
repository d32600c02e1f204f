"""A worker runs commands: output, exit statuses, environment, bad input, and nothing left behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from muster.core import limits
from muster.core.protocol import Cancel, Result
from muster.testing import eventually

from .worker_world import World, one_agent


async def test_a_command_ends_with_its_output_and_status(tmp_path: Path) -> None:
    async with one_agent(tmp_path, command=("sh", "-c", 'echo "out $1"; echo "err $1" >&2; exit 3', "sh")) as world:
        result = await world.run("w", 1, "a b")
        assert (result.outcome, result.exit_status, result.signal) == ("failed", 3, None)
        assert (result.stdout, result.stderr) == (b"out a b\n", b"err a b\n")
        assert (result.stdout_bytes, result.stdout_file) == (8, None)
        assert result.duration_s > 0
        assert (await world.run("w", 2, "c")).stdout == b"out c\n"
