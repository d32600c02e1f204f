"""Where the files of a store are, and how lanes are named. Agent ids contain no dot, so suffixes with one never collide."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from muster.core.names import agent_id
from muster.errors import StoreError
from muster.security.permissions import make_private_dir, open_private

if TYPE_CHECKING:
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
        UnsafePermissionsError: One of them exists with a foreign owner or open mode.
    """
    agent_id(agent, allow_reserved=True)
    base = store / "agents" / agent
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


def has_agent(store: Path, agent: str) -> bool:
    return os.path.lexists(f"{store}/agents/{agent}/bell")


def roster(store: Path) -> list[str]:
    """Every agent of the store, sorted by name."""
    try:
        names = sorted(os.listdir(store / "agents"))
    except FileNotFoundError:
        return []
    return [name for name in names if has_agent(store, name)]
