"""A standing fleet: made from fleet.toml, started, watched from in front, brought down."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muster.agent.status import read_status
from muster.bus.store import add_agent, create_store, read_settings, set_overflow, write_spec
from muster.core import spec as specs
from muster.core.names import COORDINATOR, OPERATOR
from muster.core.settings import REFUSE
from muster.errors import (
    CommandNotFoundError,
    ConfigError,
    FleetNotRunningError,
    FleetRunningError,
    SpawnFailedError,
    StoreUnsuitableError,
)
from muster.fleet import config, leftovers, logs, places
from muster.fleet.entries import entries
from muster.fleet.handlers import check_handler
from muster.fleet.proxying import sealed
from muster.fleet.run import note_signals
from muster.supervise import platform
from muster.supervise.client import SpawnerClient
from muster.supervise.spawner import start_spawner

if TYPE_CHECKING:
    from muster.core.spec import AgentSpec, FleetSpec

#: Time for all agents to become ready before `up` says who is missing.
READY_S = 60.0
LOOK_S = 0.02
#: Pause between two looks at the event log while the fleet is in front.
WATCH_S = 0.25


@dataclass
class Started:
    """A standing fleet that was just started."""

    spec: FleetSpec
    store: Path
    spawner: SpawnerClient
    started_at: float
    #: Signals that came before `watch` could act on them (only in front).
    signals: list[int] = field(default_factory=list)
    #: Where the logs of earlier lives end.
    log_marks: logs.Marks = field(default_factory=dict)
    #: Sentences for whoever started it.
    notices: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.spec.name


def start(file: Path, flags: dict[str, Any], *, store_root: str | None, detach: bool) -> Started:
    """Start the fleet that `file` describes. Messages that an earlier life of it left unread are kept.

    Raises:
        ConfigError, CommandNotFoundError, HandlerNotFoundError: The file, or what it names, is wrong; nothing was started.
        FleetRunningError: It is up already.
        StoreError, SecurityError, SpawnFailedError: It cannot be started.
    """
    started_at = time.monotonic()
    settings = config.load(file, flags=flags)
    spec = settings.spec("")
    if not spec.agents:
        raise ConfigError(f"{file}: there is no [agents.NAME] table, so there is nothing to start", source=str(file))
    for kind in spec.agents:
        _check_kind(kind)
    for hook in spec.hooks:
        _check_command(hook.command[0], hook.cwd, {}, f"[hooks.{hook.name}]")
    leftovers.reclaim_quietly(store_root)
    root = places.make_private(places.state_root(store_root))
    places.check_room(root, len(specs.roster(spec)))
    if settings.bus.durable:
        _check_disk(root)
    store = _open_or_make(root, spec.name)
    # Another life of the same store keeps its id: processes of the earlier life are then found by it, and killed by the spawner.
    store_id = str((places.load_spec(store) or {}).get("store_id") or secrets.token_hex(16))
    spec = settings.spec(store_id)
    create_store(store, settings.bus_settings())
    notices = _kept_settings(settings, store)
    spec = sealed(spec, store)
    write_spec(store, spec)
    for agent in (COORDINATOR, OPERATOR, *specs.teams(spec), *specs.roster(spec), *specs.services(spec)):
        add_agent(store, agent)
    _set_overflow(store, spec)
    noted: list[int] = []
    if not detach:  # behind, Ctrl-C ends the waiting, not the fleet
        note_signals(noted)
    marks = logs.marks(store)
    spawner = start_spawner(store, entries(), foreground=not detach)
    return Started(spec, store, spawner, started_at, noted, marks, notices)


def _check_disk(root: Path) -> None:
    from muster.bus.transports.lanes import probe

    kind = probe.filesystem_of(root)
    if kind in probe.VOLATILE:
        raise StoreUnsuitableError(
            f"durable = true needs a disk, and {root} is on {kind}; choose another place with --store", filesystem=kind
        )


def _kept_settings(settings: config.FleetConfig, store: Path) -> list[str]:
    """A store keeps the bounds that it was made with, because its lanes reckon with them: say so where fleet.toml asks for others.

    Raises:
        ConfigError: It asks for messages that survive a power cut, and this store cannot promise that.
    """
    kept = read_settings(store)
    others = [key for key, value in settings.written_bus().items() if getattr(kept, key) != value]
    if not others:
        return []
    told = ", ".join(f"{key} = {getattr(kept, key)!s}".lower() for key in others)
    sentence = (
        f"the store of {settings.name!r} keeps the [bus] settings it was made with ({told}); "
        f"for those of {settings.path} give the fleet another name, or remove {store} once it is read"
    )
    if "durable" in others and settings.bus.durable:
        raise ConfigError(sentence, key="bus.durable", source=str(settings.path))
    return [sentence]


def _set_overflow(store: Path, spec: FleetSpec) -> None:
    for kind in spec.agents:
        policy = kind.overflow or (REFUSE if kind.command or kind.handler else None)
        if policy is not None:
            for agent in kind.agent_ids():
                set_overflow(store, agent, policy)


def _check_kind(kind: AgentSpec) -> None:
    cwd = Path(kind.cwd or ".")
    if not cwd.is_dir():
        raise ConfigError(f"[agents.{kind.name}] cwd: there is no directory {cwd}", key="cwd")
    if kind.handler is not None:
        check_handler(kind.handler, cwd)
    if kind.command is not None and not kind.shell:
        _check_command(kind.command[0], kind.cwd, kind.env, f"[agents.{kind.name}]")


def _check_command(name: str, cwd: str | None, env: dict[str, str], place: str) -> None:
    from muster.fleet.run_options import find_command

    try:
        find_command(name, Path(cwd or "."), env)
    except CommandNotFoundError as error:
        raise CommandNotFoundError(f"{place}: {error.message}") from None


def _open_or_make(root: Path, name: str) -> Path:
    from muster.bus.transports.lanes import probe

    store = root / name
    try:
        os.mkdir(store, 0o700)
    except FileExistsError:
        places.check_private(store)
        pid = places.spawner_pid(store)
        if pid is not None:
            raise FleetRunningError(
                f"the fleet {name!r} is already up ({platform.since(pid)})", fleet=name, pid=pid
            ) from None
        if (places.load_spec(store) or {}).get("run") is not None:
            raise FleetRunningError(
                f"a crashed run is called {name!r}; `muster doctor --fix` removes it", fleet=name
            ) from None
    except OSError as error:
        raise StoreUnsuitableError(f"cannot make a store in {root}: {error.strerror}", path=str(root)) from None
    probe.check(store)
    return store


def wait_ready(fleet: Started, ready_s: float = READY_S) -> list[str]:
    """Wait until every agent has joined; return those that have not.

    Raises:
        SpawnFailedError: The fleet ended while it was starting.
    """
    missing = hosted(fleet.spec)[::-1]
    deadline = time.monotonic() + ready_s
    while missing and not fleet.signals and time.monotonic() < deadline:
        # They become ready about in the order in which they are started, so one that is not is enough to know: looking at thousands of
        # pages again and again would take the processor from those who are to write them.
        while missing and _is_ready(fleet.store, missing[-1]):
            missing.pop()
        if missing and select.select([fleet.spawner.fileno()], [], [], LOOK_S)[0]:
            raise SpawnFailedError(
                f"the fleet {fleet.name!r} ended while it was starting; see `muster logs --fleet {fleet.name}`",
                fleet=fleet.name,
            )
    return [agent for agent in reversed(missing) if not _is_ready(fleet.store, agent)]


def hosted(spec: FleetSpec) -> list[str]:
    """The agents that muster runs. A kind without command and handler is an inbox for a program of its own, which joins when it likes."""
    return [agent for kind in spec.agents if kind.command or kind.handler for agent in kind.agent_ids()]


def _is_ready(store: Path, agent: str) -> bool:
    page = read_status(store, agent)
    return page is not None and page.state in ("ready", "busy", "waiting", "limited") and _alive(page.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def watch(fleet: Started, say: Callable[[dict[str, Any]], None]) -> int:
    """Stay in front of a fleet until it has ended: pass on signals, show its events. Returns its exit status."""
    acted_on = 0

    def act_on_signals() -> None:
        # Handlers only note signals: the spawner's client is no place to be interrupted and entered again.
        nonlocal acted_on
        while acted_on < len(fleet.signals):
            number, mode = fleet.signals[acted_on], "now" if acted_on else "drain"
            try:
                fleet.spawner.stop("now" if acted_on else "drain", signal.Signals(number).name, timeout_s=2.0)
            except TimeoutError:
                return  # asked again at the next look
            except FleetNotRunningError:
                pass
            acted_on += 1
            name = signal.Signals(number).name
            say({"at": _now(), "source": "muster", "event": "fleet.stopping", "mode": mode, "signal": name})

    def is_over() -> bool:
        if os.getpid() == 1:
            _reap_strangers(fleet.spawner.pid)
        if select.select([fleet.spawner.fileno()], [], [], 0)[0]:
            return True
        act_on_signals()
        return False

    for entry in logs.entries(fleet.store, None, follow=True, ended=is_over, after=fleet.log_marks):
        say(entry)
    try:
        return fleet.spawner.wait(5.0)
    except (FleetNotRunningError, TimeoutError):
        return 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reap_strangers(spawner: int) -> None:
    """As process 1 of a container we inherit everybody's orphans: reap them, but leave the spawner's end to its client."""
    with contextlib.suppress(ChildProcessError):
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid == spawner:
                return
            os.waitpid(found.si_pid, 0)


def down(fleet: places.Fleet, *, now: bool, timeout_s: float | None) -> int:
    """Bring a fleet down and wait until nothing of it is left. Returns its exit status.

    Raises:
        FleetNotRunningError: It is not up; nothing was done.
        TimeoutError: It has not ended within `timeout_s`; it is still ending.
    """
    if fleet.spawner_pid is None:
        raise FleetNotRunningError(f"the fleet {fleet.name!r} is not up", fleet=fleet.name)
    with SpawnerClient.connect(fleet.store) as spawner:
        spawner.stop("now" if now else "drain", "muster down")
        return spawner.wait(timeout_s)
