"""Where the files of a store are, and how lanes are named. Agent ids contain no dot, so suffixes with one never collide."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from muster.core.names import agent_id
from muster.core.settings import DEFAULTS, FILE_NAME, BusSettings, parse_settings
from muster.errors import InvalidNameError, RosterFullError, StoreError
from muster.security.permissions import make_private_dir, open_private, read_private, sync_path, write_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    base = store / "agents" / agent
    settings = read_settings(store)
    is_back = os.path.lexists(base / "retired")
    if not is_back and not has_agent(store, agent) and len(os.listdir(store / "agents")) >= settings.agents_max:
        # Every inbox keeps a floor of credit for each possible sender, so the number of senders is a bound, too.
        raise RosterFullError(
            f"the fleet {store.name} has {settings.agents_max:,} agents, as many as bus.agents_max allows", agent=agent
        )
    for directory in (base, base / "outbox", base / "inbox", base / "inbox" / "dead"):
        make_private_dir(directory)
    for lock in ("inbox.lock", "outbox.lock"):
        os.close(open_private(str(base / lock), os.O_RDWR | os.O_CREAT))
    bell = str(base / "bell")
    # The bell is made last: an agent is on the roster once its bell exists.
    if not os.path.lexists(bell):
        try:
            os.mkfifo(bell, 0o600)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreError(f"no FIFO can be made in {base}: {error.strerror}", path=str(base)) from None
    if settings.durable:
        for directory in (base / "outbox", base / "inbox", base, base.parent):
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


def has_outbox(store: Path, agent: str) -> bool:
    """Whether `agent` sends, or has sent before it was retired and may have left something unread."""
    return os.path.lexists(f"{agent_dir(store, agent)}/outbox")


def _senders(store: Path) -> list[str]:
    try:
        names = sorted(os.listdir(store / "agents"))
    except FileNotFoundError:
        return []
    return [name for name in names if has_outbox(store, name)]


def lanes_to(store: Path, agent: str) -> Iterator[tuple[str, bool]]:
    """(sender, whether of the control class) of every lane that ends in `agent`'s inbox, by the senders' names."""
    for sender in _senders(store):
        for control in (False, True):
            if os.path.lexists(f"{agent_dir(store, sender)}/outbox/{lane_name(agent, control=control)}/lane"):
                yield sender, control


def all_lanes(store: Path) -> dict[str, list[tuple[str, bool]]]:
    """`lanes_to` of every agent that has any, with one look at each outbox: for a process that opens many inboxes at once."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for sender in _senders(store):
        for name in os.listdir(f"{agent_dir(store, sender)}/outbox"):
            try:
                recipient, control = parse_lane_name(name)
            except InvalidNameError:
                continue
            found.setdefault(recipient, []).append((sender, control))
    return found


def roster(store: Path) -> list[str]:
    """Every agent of the store, sorted by name."""
    try:
        names = sorted(os.listdir(store / "agents"))
    except FileNotFoundError:
        return []
    return [name for name in names if has_agent(store, name)]
