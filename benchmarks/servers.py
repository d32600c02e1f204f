"""The servers that some peers need: ours alone, on a Unix socket or loopback, started at the first use and ended by `close_all`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.harness import MissingContenderError
from benchmarks.setting import program, program_environment, scratch

_START_S = 10.0


class Server:
    """A process that serves. Subclasses say how it is started and when it is ready."""

    program_name = ""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._address: str | None = None
        self._pid = 0

    def address(self) -> str:
        """Where it listens; started if it is not. Raises MissingContenderError."""
        if self._address is None:
            self._address = self._start()
        return self._address

    def cpu_s(self) -> float:
        """Processor time that it has used so far; 0 while it does not run."""
        if self._pid == 0:
            return 0.0
        spent = psutil.Process(self._pid).cpu_times()
        return float(spent.user + spent.system)

    def close(self) -> None:
        self._stack.close()
        self._address, self._pid = None, 0

    def _start(self) -> str:
        raise NotImplementedError

    def _launch(self, command: list[str], is_ready: Callable[[], str | None]) -> str:
        process = subprocess.Popen(
            command,
            env=program_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(_end, process)
        deadline = time.monotonic() + _START_S
        while (found := is_ready()) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise MissingContenderError(f"{self.program_name} did not start")
            time.sleep(0.02)
        self._pid = process.pid
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class RedisServer(Server):
    """redis-server on a Unix socket, nothing written to disk."""

    program_name = "redis-server"

    def _start(self) -> str:
        try:
            import hiredis  # noqa: F401
            import redis
        except ImportError:
            raise MissingContenderError("redis-py with hiredis is not installed (scripts/setup.sh bench)") from None
        binary = program("redis-server")
        directory = self._stack.enter_context(scratch())
        path = str(directory / "redis.sock")
        options = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700", "--save", "", "--appendonly", "no"]

        def is_ready() -> str | None:
            with contextlib.suppress(redis.ConnectionError), redis.Redis(unix_socket_path=path) as client:
                client.ping()
                return path
            return None

        return self._launch([binary, *options, "--dir", str(directory)], is_ready)


class NatsServer(Server):
    """nats-server with JetStream on a loopback port of its own choice.

    `on_disk` False: its files lie in memory, as ours. True: on the disk, where `sync_interval: always` means something.
    """

    program_name = "nats-server"

    def __init__(self, sync_interval: str = "2m", *, on_disk: bool = False) -> None:
        super().__init__()
        self.sync_interval = sync_interval
        self.store: Path | None = None
        self._on_disk = on_disk

    def _start(self) -> str:
        try:
            import nats  # noqa: F401
        except ImportError:
            raise MissingContenderError("nats-py is not installed (scripts/setup.sh bench)") from None
        binary = nats_program()
        directory = self._stack.enter_context(scratch(on_disk=self._on_disk))
        self.store = directory / "store"
        config = directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:-1"\nports_file_dir: "{directory}"\nmax_payload: 2MB\n'
            f'jetstream {{ store_dir: "{self.store}", sync_interval: {self.sync_interval}, '
            "max_memory_store: 4GB, max_file_store: 4GB }\n"
        )

        def is_ready() -> str | None:
            for file in directory.glob("*.ports"):
                with contextlib.suppress(ValueError, LookupError):
                    return str(json.loads(file.read_text())["nats"][0])
            return None

        return self._launch([binary, "-c", str(config)], is_ready)


def nats_program() -> str:
    """The nats-server beside this interpreter, where its package puts it, or of the system. Raises MissingContenderError."""
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else program("nats-server")


REDIS = RedisServer()
NATS = NatsServer()
#: Every message on the disk before it is confirmed.
NATS_SYNCED = NatsServer("always", on_disk=True)


def close_all() -> None:
    for server in (REDIS, NATS, NATS_SYNCED):
        server.close()
