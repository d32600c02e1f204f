"""What a `muster run` command line means: checked options, and the `FleetSpec` made of them."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from muster.agent.attempt import input_text
from muster.core import limits
from muster.core.spec import AgentSpec, FleetSpec, HaltSpec, LimitSpec, ProxySpec, RetrySpec, RunSpec, TeamsSpec
from muster.core.template import expand, expand_shell, has_placeholder
from muster.errors import CommandNotFoundError, ConfigError
from muster.fleet.coding import Coding, Worktree, check_worktree, coding_of, worktree_of
from muster.fleet.division import check_teams, teams_spec
from muster.fleet.inputs import Inputs, text_of
from muster.fleet.limiting import budget_of, limit_of, pattern_of, with_limits
from muster.fleet.proxying import keys_of, proxy_of, with_upstreams
from muster.fleet.tables import LimitTable, ProxyTable
from muster.supervise.platform import started_unix_s

#: More agents than this on one machine are a slip of the keyboard.
JOBS_MAX = 10_000
#: Agents that share a worker process when they run commands and nobody said otherwise: `jobs // 10`, within 1 and this. Every command is
#: a process of its own anyway, so what sharing risks is small (a worker that is killed takes a few attempts along, which run again), and
#: a run starts fewer processes. Measured with 2,000 x `true` and 50 jobs on two cores: 5.2 s of CPU with one agent per worker, 4.2 s with
#: five, 4.0 s with ten, whose longer turns already cost time on the clock.
AGENTS_PER_COMMAND_WORKER_MAX = 5
#: A process older than this was not started for the run that it starts.
PROCESS_YOUNG_S = 10.0
#: The kind of agent that a run has; its identities are w-1 … w-N.
KIND = "w"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A checked `muster run` command line."""

    command: tuple[str, ...]
    inputs: Inputs
    handler: str | None = None
    shell: bool = False
    jobs: int = 1
    results: Path | None = None
    report: Path | None = None
    resume: bool = False
    retries: int = 0
    timeout_s: float | None = None
    halt: HaltSpec = field(default_factory=HaltSpec)
    keep_order: bool = False
    agents_per_worker: int | None = None
    #: Both None: a flat fleet.
    teams: int | None = None
    agents_per_team: int | None = None
    name: str | None = None
    store_root: str | None = None
    cwd: Path = field(default_factory=Path.cwd)
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = limits.GRACE_S
    debug: bool = False
    quiet: bool = False
    progress: bool = True
    as_json: bool = False
    #: A coding command line; `command` then holds the user's own words for it.
    preset: str | None = None
    prompt: str | None = None
    transcripts: Path | None = None
    worktree: str | None = None
    #: A limit of this run's own, which gates the starts of its tasks.
    limit: str | None = None
    rate: str | None = None
    burst: int | None = None
    #: The API proxy of this run, if it has one.
    proxy: ProxyTable | None = None
    budget: str | None = None
    limited_pattern: str = ""

    def check(self) -> None:
        """What can be known to fail before anything is started.

        Raises:
            ConfigError: A value is out of range, or options contradict each other.
            CommandNotFoundError, InputFileError: As they say.
        """
        self._check_preset()
        self._limits()
        if (proxy := self._proxy()) is not None:
            keys_of(proxy, os.environ)
        budget_of(self.budget, "--budget")
        pattern_of(self.limited_pattern, "--limited")
        if self.command and self.handler:
            raise ConfigError("a run has either a command or --handler, not both", key="handler")
        if not self.command and not self.handler and self.preset is None:
            raise ConfigError(
                "no command: write it behind the options, or name a function with --handler", key="command"
            )
        if self.handler and self.shell:
            raise ConfigError("--shell is for commands, and this run has --handler", key="shell")
        if not 1 <= self.jobs <= JOBS_MAX:
            raise ConfigError(f"--jobs must be between 1 and {JOBS_MAX}", key="jobs")
        if self.agents_per_worker is not None and self.agents_per_worker < 1:
            raise ConfigError("--agents-per-worker must be at least 1", key="agents_per_worker")
        if self._teams() is not None:
            check_teams(self.spec(name="", store_id="", spool=self.cwd), "--teams:")
        if self.retries < 0:
            raise ConfigError("--retries must not be negative", key="retries")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ConfigError("--timeout must be longer than nothing", key="timeout")
        if self.resume and self.results is None:
            raise ConfigError("--resume needs the --results FILE of the earlier run", key="resume")
        if not self.cwd.is_dir():
            raise ConfigError(f"--cwd: {self.cwd} is not a directory", key="cwd")
        if self.report is not None and not self.report.parent.is_dir():
            raise ConfigError(f"--report: there is no directory {self.report.parent}", key="report")
        if self.shell:
            expand_shell(self.command, "input", 1)
        elif self.command or self.preset is not None:
            find_command(self._template()[0], self.cwd, self.env)
        if self._worktree():
            check_worktree(self.cwd, "--worktree")
        self.inputs.check()

    def _teams(self) -> TeamsSpec | None:
        if self.teams is None and self.agents_per_team is None:
            return None
        return teams_spec(self.teams, self.agents_per_team, "--teams, --agents-per-team:")

    def _check_preset(self) -> None:
        if self.preset is None:
            if self.prompt is not None or self.transcripts is not None:
                raise ConfigError("--prompt and --transcripts belong to a --preset", key="preset")
        elif self.handler or self.shell:
            raise ConfigError("--preset is the command; it goes with neither --handler nor --shell", key="preset")
        else:
            self._coding()

    def spec(self, *, name: str, store_id: str, spool: Path) -> FleetSpec:
        """The fleet that carries out this run."""
        agents = AgentSpec(
            name=KIND if self.jobs > 1 else f"{KIND}-1",
            count=self.jobs,
            command=self._template() or None,
            handler=self.handler,
            shell=self.shell,
            cwd=str(self.cwd),
            env=dict(self.env),
            timeout_s=self._timeout_s(),
            coding=None if self.preset is None else self._coding().spec,
            worktree=self._worktree(),
            limit=next(iter(self._limits()), ""),
            limited_pattern=pattern_of(self.limited_pattern, "--limited"),
        )
        automatic = 1 if self.handler else max(1, min(AGENTS_PER_COMMAND_WORKER_MAX, self.jobs // 10))
        kinds, shared = with_limits((agents,), self._limits(), "--limit")
        proxy = self._proxy()
        return FleetSpec(
            name=name,
            store_id=store_id,
            agents=kinds,
            limits=with_upstreams(shared, proxy),
            proxy=proxy,
            budget=budget_of(self.budget, "--budget"),
            run=RunSpec(
                results=None if self.results is None else str(self.results),
                report=None if self.report is None else str(self.report),
                keep_order=self.keep_order,
                halt=self.halt,
                resume=self.resume,
            ),
            agents_per_worker=self.agents_per_worker or automatic,
            teams=self._teams(),
            retry=RetrySpec(attempts_max=self.retries + 1),
            grace_s=self.grace_s,
            ephemeral=True,
            spool=str(spool),
            debug=self.debug,
            started_unix_s=wait_began_unix_s(),
        )

    def command_lines(self) -> Iterator[tuple[int, str, str]]:
        """What would be run, as (number, input, quoted command line), for `--dry-run`."""
        number = 0
        for batch in self.inputs.batches():
            for item in batch:
                number += 1
                text = input_text(text_of(item))
                yield number, text, self._command_line(text, number)

    def _command_line(self, text: str, number: int) -> str:
        if self.handler:
            return f"{self.handler}({text!r})"
        if self.shell:
            return expand_shell(self.command, text, number)
        return shlex.join(expand(self._template(), text, number))

    def _limits(self) -> dict[str, LimitSpec]:
        if self.limit is None and self.rate is None and self.burst is None and not self.limited_pattern:
            return {}
        name = self.limit if self.limit is not None else "rate" if self.rate is not None else "vendor"
        table = LimitTable(requests=self.rate, burst=self.burst)
        return {name: limit_of(name, table, "--rate" if self.rate is not None else "--limit")}

    def _coding(self) -> Coding:
        assert self.preset is not None
        return coding_of(self.preset, self.command, self.prompt, self.transcripts, "--preset")

    def _proxy(self) -> ProxySpec | None:
        return None if self.proxy is None else proxy_of(self.proxy, "--proxy", self.cwd)

    def _template(self) -> tuple[str, ...]:
        return self.command if self.preset is None else self._coding().command

    def _timeout_s(self) -> float | None:
        return self.timeout_s if self.timeout_s is not None or self.preset is None else self._coding().timeout_s

    def _worktree(self) -> Worktree:
        return worktree_of(self.worktree, "--worktree-keep")


def find_command(name: str, cwd: Path, env: Mapping[str, str]) -> None:
    """Check that the command `name` can be started in `cwd`, with PATH from `env` if it is there.

    Raises:
        CommandNotFoundError: It is missing or not executable.
    """
    if has_placeholder([name]):
        return  # the inputs say which command it is
    path = env.get("PATH", os.environ.get("PATH", os.defpath))
    found = str(cwd / name) if "/" in name else shutil.which(name, path=path)
    if found is None or not os.path.exists(found):
        raise CommandNotFoundError(f"there is no command {name!r:.120}", command=name)
    if os.path.isdir(found) or not os.access(found, os.X_OK):
        raise CommandNotFoundError(f"{name!r:.120} is not executable", command=name)


def parse_halt(text: str) -> HaltSpec:
    """`soon,fail=N`, `now,fail=N` or `never`, as GNU parallel writes them.

    Raises:
        ConfigError: Anything else.
    """
    when, _, rest = text.partition(",")
    count = rest.removeprefix("fail=") if rest else "1"
    if when == "never" and not rest:
        return HaltSpec()
    if when not in ("soon", "now") or not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise ConfigError(f"--halt: {text!r:.60} is none of never, soon,fail=N and now,fail=N", key="halt")
    return HaltSpec(when="soon" if when == "soon" else "now", fail=int(count))


def parse_env(pairs: tuple[str, ...]) -> dict[str, str]:
    """`K=V` options as a dict.

    Raises:
        ConfigError: A pair has no name or no "=", or sets one of muster's own variables.
    """
    env: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"--env: {pair!r:.60} is not NAME=VALUE", key="env")
        if name.startswith("MUSTER_"):
            raise ConfigError(f"--env: {name} is set by muster itself", key="env")
        env[name] = value
    return env


def default_jobs() -> int:
    """As many as this process may use cores."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def wait_began_unix_s() -> float:
    """When whoever waits for this run began to wait: the start of this process if it was made for the run, else now.

    A command line's process is young when it gets here; a program that runs muster from within may be hours old.
    """
    now = time.time()
    started_s = started_unix_s(os.getpid())
    return started_s if started_s is not None and 0 <= now - started_s <= PROCESS_YOUNG_S else now
