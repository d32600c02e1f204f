"""The click side of the command line: a group whose verbs are imported when they are used, and one place where errors end."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from muster._version import __version__
from muster.cli.output import report_error
from muster.errors import MusterError, UsageError

#: Verb -> one line for `muster --help`; the module of a verb has its name and holds a click command called `command`.
VERBS: dict[str, str] = {
    "run": "Run a command or a Python function over many inputs.",
    "attach": "Follow a run that was started with --detach.",
    "up": "Start the standing fleet that a fleet.toml describes.",
    "down": "Bring a fleet down.",
    "ps": "List the processes of fleets.",
    "ls": "List the agents of a fleet and what waits for them.",
    "status": "Show how a fleet is: agents, tasks, health.",
    "top": "Watch a fleet live: agents, tasks, throughput.",
    "logs": "Show what a fleet and its agents logged.",
    "watch": "Follow what happens in a fleet.",
    "send": "Put a message into an agent's inbox.",
    "recv": "Take messages from the inbox.",
    "reply": "Answer a message that was taken.",
    "ask": "Send a request and print the reply.",
    "lock": "Run a command under a lock of the whole fleet.",
    "retry": "Queue tasks again that failed, died or were cancelled.",
    "cancel": "Cancel tasks: those that wait, and those that run.",
    "pause": "Assign nothing new, to anybody or to some kinds.",
    "resume": "Assign tasks again after a pause.",
    "dead": "List, show, redrive and drop dead letters.",
    "fsck": "Check a fleet's store, and repair it.",
    "retire": "Take an agent off the roster, and keep what waits for it.",
    "guide": "Print what to tell agents about the bus.",
    "doctor": "Check this machine, and find what crashed fleets left behind.",
    "scale": "Have more agents of a kind, or fewer, while the fleet runs.",
    "restart": "Start workers anew, few at a time, without losing work.",
    "version": "Print the version.",
}

F = TypeVar("F", bound=Callable[..., Any])


class _Verbs(click.Group):
    """Lists verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's signature
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"muster.cli.verbs.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`muster --help` lists the verbs"
            raise click.UsageError(f"there is no verb {args[0]!r:.60}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's signature
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


class _Mode:
    """What holds for the rest of this process once an option said so."""

    as_json = False
    debug = False


def _set_mode(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def callback(_ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        if value:
            setattr(_Mode, name, True)
        return value

    return callback


def is_debug() -> bool:
    """Whether --debug was given."""
    return _Mode.debug


def common(*, fleet: bool = True) -> Callable[[F], F]:
    """Options that every verb has: --json, --debug, and --fleet, --store where a fleet is meant."""

    def decorate(function: F) -> F:
        options = [
            click.option(
                "--json", "as_json", is_flag=True, is_eager=True, callback=_set_mode("as_json"), help="Print JSON."
            ),
            click.option(
                "--debug",
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_set_mode("debug"),
                help="Show tracebacks.",
            ),
            click.option(
                "--store", metavar="DIR", help="Directory that holds the fleets' stores (also MUSTER_STORE_DIR)."
            ),
        ]
        if fleet:
            options.append(
                click.option(
                    "--fleet", metavar="NAME", help="The fleet; else MUSTER_FLEET, else the nearest fleet.toml."
                )
            )
        for option in options:
            function = option(function)
        return function

    return decorate


EPILOG = """\b
Exit status: 0 done, 1 some failed, 2 usage, 3 halted by a limit, 130/143 signals.
Completion:  eval "$(_MUSTER_COMPLETE=bash_source muster)"   (also zsh_source, fish_source)
"""


@click.group(
    cls=_Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="muster", message="%(prog)s %(version)s")
@click.option(
    "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_set_mode("debug"), help="Show tracebacks."
)
def group() -> None:
    """Fleets of agent processes: run them, let them talk, know how they are, leave nothing behind."""


def run(words: list[str]) -> int:
    """Carry out a command line; its exit status. A user's mistake is one sentence, never a traceback (unless --debug)."""
    try:
        status = group.main(words, prog_name="muster", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "muster"
        text = error.format_message().rstrip(".").replace("\n", " ")
        as_json = _Mode.as_json or "--json" in words[: words.index("--") if "--" in words else None]
        report_error(UsageError(f"{text[:1].lower()}{text[1:]}; see `{where} --help`"), as_json=as_json)
        return 2
    except MusterError as error:
        if _Mode.debug:
            raise
        report_error(error, as_json=_Mode.as_json)
        return error.exit_status
    except TimeoutError as error:
        report_error(MusterError(str(error)), as_json=_Mode.as_json)
        return 1
    except BrokenPipeError:
        return 141
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")
        return 130
    except Exception as error:
        if _Mode.debug:
            raise
        report_error(
            MusterError(f"a bug in muster: {type(error).__name__}: {error} (--debug shows where)"),
            as_json=_Mode.as_json,
        )
        return 1
    return status if isinstance(status, int) else 0
