"""Where the files of a store are, and how lanes are named. Agent ids contain no dot, so suffixes with one never collide."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from muster.bus.transports.lanes.cursor import make_spares
from muster.core import limits
from muster.core.names import agent_id
from muster.core.settings import DEFAULTS, FILE_NAME, BusSettings, parse_settings
from muster.errors import InvalidNameError, RosterFullError, StoreError
from muster.security.permissions import make_private_dir, open_private, read_private, sync_path, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTROL_SUFFIX = ".control"


def agent_dir(store: Path, agent: str) -> str:
    return f"{store}/agents/{agent}"


def lane_name(agent: str, *, control: bool) -> str:
    """The name a lane goes by in bells, directories and cursors: the other side's id, with a suffix for the control class."""
    return agent + CONTROL_SUFFIX if control else agent


def parse_lane_name(name: str) -> tuple[str, bool]:
    """The agent and whether it is the control lane. Raises InvalidNameError: a bell record or file name is only a hint."""
    agent, control = (name[: -len(CONTROL_SUFFIX)], True) if name.endswith(CONTROL_SUFFIX) else (name, False)
    return agent_id(agent, allow_reserved=True), control


def add_agent(store: Path, agent: str) -> None:
    """Put `agent` on the roster: its directories, bell and lock files, all private. Idempotent, safe against a crash in the middle.

    Raises:
        InvalidNameError: The id is not a name; nothing was made.
        RosterFullError: The store has as many agents as its settings allow; nothing was made.
        UnsafePermissionsError: One of them exists with a foreign owner or open mode.
    """
    agent_id(agent, allow_reserved=True)
    base = agent_dir(store, agent)
    settings = read_settings(store)
    is_new = not os.path.lexists(base)
    if is_new and _count_folders(f"{store}/agents") >= settings.agents_max:
        # Every inbox keeps a floor of credit for each possible sender, so the number of senders is a bound, too.
        raise RosterFullError(
            f"the fleet {store.name} has {settings.agents_max:,} agents, as many as bus.agents_max allows", agent=agent
        )
    for directory in (base, f"{base}/outbox", f"{base}/inbox", f"{base}/inbox/dead"):
        make_private_dir(directory)
    for lock in ("inbox.lock", "outbox.lock"):
        os.close(open_private(f"{base}/{lock}", os.O_RDWR | os.O_CREAT))
    _make_senders(store, agent, is_new=is_new)
    if is_new:
        make_spares(
            f"{base}/inbox", 0, limits.SPARE_CURSORS
        )  # so that it can be drained even if the store is full before it ever starts
    bell = f"{base}/bell"
    # The bell is made last: an agent is on the roster once its bell exists.
    if not os.path.lexists(bell):
        try:
            os.mkfifo(bell, 0o600)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"no FIFO can be made in {base}: {error.strerror}", path=base) from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base}/retired")  # the name is back
    if settings.durable:
        for directory in (f"{base}/outbox", f"{base}/inbox", base, f"{store}/agents"):
            sync_path(directory)


def write_settings(store: Path, settings: BusSettings) -> None:
    """Put the settings of a new store beside it. Raises FileExistsError: they stand already and do not change."""
    write_private(store / FILE_NAME, settings.render().encode(), durable=settings.durable)


def read_settings(store: Path) -> BusSettings:
    """The settings of a store; the defaults if it has none of its own. Raises ConfigError, UnsafePermissionsError."""
    try:
        text = read_private(store / FILE_NAME).decode("utf-8", "replace")
    except FileNotFoundError:
        return DEFAULTS
    return parse_settings(text)


def has_agent(store: Path, agent: str) -> bool:
    return os.path.lexists(f"{store}/agents/{agent}/bell")


def _count_folders(directory: str) -> int:
    """How many folders stand in `directory`; where the file system counts them by itself, without reading it."""
    links = os.stat(directory).st_nlink
    return links - 2 if links >= 2 else len(os.listdir(directory))


def _make_senders(store: Path, agent: str, *, is_new: bool) -> None:
    """The folder in which senders leave their names, so that a start need not look through everybody's outbox.

    An agent of a format 1 store has none: it is filled with the lanes that are there and appears whole.
    """
    base = agent_dir(store, agent)
    if os.path.lexists(f"{base}/senders"):
        return
    if is_new:
        make_private_dir(f"{base}/senders")
        return
    temporary = f"{base}/tmp-senders-{os.getpid()}"
    make_private_dir(temporary)
    for sender, control in lanes_to(store, agent):
        os.close(open_private(f"{temporary}/{lane_name(sender, control=control)}", os.O_WRONLY | os.O_CREAT))
    try:
        os.rename(temporary, f"{base}/senders")
    except OSError:  # somebody else of this identity was faster; theirs is as good
        shutil.rmtree(temporary, ignore_errors=True)


def mark_sender(store: Path, recipient: str, name: str) -> None:
    """Leave the name of a lane with its recipient, before the lane begins. An empty file: nobody reads or writes what is in it.

    Raises:
        OSError: No room for the name; the lane must not begin, because nobody might find it.
    """
    try:
        fd = os.open(
            f"{agent_dir(store, recipient)}/senders/{name}",
            os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
        )
    except FileNotFoundError:  # of format 1: the recipient looks through all outboxes
        return
    os.close(fd)


def has_outbox(store: Path, agent: str) -> bool:
    """Whether `agent` sends, or has sent before it was retired and may have left something unread."""
    return os.path.lexists(f"{agent_dir(store, agent)}/outbox")


def _agents_with(store: Path, has: Callable[[Path, str], bool]) -> list[str]:
    try:
        names = sorted(os.listdir(store / "agents"))
    except FileNotFoundError:
        return []
    return [name for name in names if has(store, name)]


def lanes_to(store: Path, agent: str) -> Iterator[tuple[str, bool]]:
    """(sender, whether of the control class) of every lane that ends in `agent`'s inbox, by the senders' names."""
    try:
        names = sorted(os.listdir(f"{agent_dir(store, agent)}/senders"))
    except FileNotFoundError:
        yield from _lanes_of_format_1(store, agent)
        return
    for name in names:
        try:
            yield parse_lane_name(name)
        except InvalidNameError:  # nothing that a sender has left
            continue


def _lanes_of_format_1(store: Path, agent: str) -> Iterator[tuple[str, bool]]:
    for sender in _agents_with(store, has_outbox):
        for control in (False, True):
            if os.path.lexists(f"{agent_dir(store, sender)}/outbox/{lane_name(agent, control=control)}/lane"):
                yield sender, control


def all_lanes(store: Path) -> dict[str, list[tuple[str, bool]]]:
    """`lanes_to` of every agent that has any."""
    found = {agent: list(lanes_to(store, agent)) for agent in roster(store)}
    return {agent: lanes for agent, lanes in found.items() if lanes}


def roster(store: Path) -> list[str]:
    """Every agent of the store, sorted by name."""
    return _agents_with(store, has_agent)
