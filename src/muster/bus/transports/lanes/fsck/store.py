"""A whole store, living or down: its folders, every agent, every lane, every inbox, the coordinator's log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from muster.bus.transports.lanes import inspect, layout, outlane
from muster.bus.transports.lanes.fsck.files import check_entry, check_folder
from muster.bus.transports.lanes.fsck.findings import DAMAGE, LOSS, NOTICE, REPAIRED, Finding, examine
from muster.bus.transports.lanes.fsck.headers import page_id
from muster.bus.transports.lanes.fsck.inboxes import InboxCheck
from muster.bus.transports.lanes.fsck.lanes import LaneCheck
from muster.bus.transports.lanes.fsck.walk import Frame, Gap, walk
from muster.bus.transports.lanes.retire import is_retired, reclaim_lanes, retire_agent
from muster.bus.transports.lanes.segment import list_segments, segment_name
from muster.core.codec import CHECKSUM_KEY, TAG_BYTES, digest
from muster.core.names import agent_id
from muster.errors import InvalidNameError, MusterError
from muster.security.keys import load_master, pair_key, receive_root
from muster.security.permissions import read_private

_OF_AGENT = {
    "bell": "fifo", "retired": "fifo", "status": "file", "inbox.lock": "file", "outbox.lock": "file", "log": "file", "log.1": "file",
    "log.2": "file", "log.3": "file", "log.new": "file",
    "inbox": "folder", "outbox": "folder", "senders": "folder",
}  # fmt: skip
_FOLDERS = ("agents", "keys", "sockets")
Lane = tuple[str, str, bool]


def check_store(store: Path, *, repair: bool = False) -> list[Finding]:
    """Check everything, and with `repair` mend what no living process owns. Nothing is changed without it.

    A finding's severity is `notice`, `damage` or `loss`; an empty list, or notices alone, is a clean store. Repeating a repair finds
    nothing left of what the first one could mend.
    """
    found = examine(partial(_folders, store), repair=repair)
    found += examine(partial(_roster, store), repair=False)
    master = _master(store, found)
    agents = _agents(store)
    for agent in agents:
        found += examine(partial(_agent, store, agent), repair=repair)
    lanes = list(_lanes(store, agents))
    for sender, recipient, control in lanes:
        key = None if master is None else pair_key(receive_root(master, recipient), sender)
        found += examine(LaneCheck(store, sender, recipient, control=control, key=key).check, repair=repair)
    for agent in agents:
        incoming = [(sender, control) for sender, recipient, control in lanes if recipient == agent]
        found += examine(InboxCheck(store, agent, incoming).check, repair=repair)
    found += examine(partial(_event_log, store / "coordinator" / "log"), repair=False)
    found += examine(partial(_settings, store), repair=False)
    if any(finding.outcome == REPAIRED for finding in found) and _may_be_durable(store):
        os.sync()  # what was mended survives a power cut, too
    return found


def _folders(store: Path) -> Iterator[Finding]:
    yield from check_entry(str(store), ".", "folder", None)
    for name in _FOLDERS:
        if os.path.lexists(store / name):
            yield from check_entry(f"{store}/{name}", name, "folder", None)
        else:
            yield Finding(
                DAMAGE, name, "is missing", remedy="make it", cure=partial(os.mkdir, store / name, 0o700)
            )  # fmt: skip
    for name in ("keys/master", "spec.json", "bus.conf"):
        yield from check_entry(f"{store}/{name}", name, "file", None)


def _settings(store: Path) -> Iterator[Finding]:
    try:
        layout.read_settings(store)
    except (OSError, MusterError) as error:
        yield Finding(DAMAGE, "bus.conf", f"cannot be read, so nobody can join: {error}")


def _may_be_durable(store: Path) -> bool:
    try:
        return layout.read_settings(store).durable
    except (OSError, MusterError):
        return True


def _roster(store: Path) -> Iterator[Finding]:
    """Every agent that the fleet's specification names is on the roster, or was retired. Joined programs alone have none."""
    import msgspec

    from muster.core.spec import FleetSpec

    try:
        spec = msgspec.json.decode(read_private(store / "spec.json"), type=FleetSpec)
    except FileNotFoundError:
        return
    except (OSError, MusterError, msgspec.MsgspecError) as error:
        yield Finding(DAMAGE, "spec.json", f"cannot be read by this version: {error}")
        return
    for agent in (agent for kind in spec.agents for agent in kind.agent_ids()):
        if not os.path.lexists(f"{store}/agents/{agent}"):
            yield Finding(
                NOTICE,
                f"agents/{agent}",
                "is in the fleet's specification and not on the roster; the next `up` makes it",
            )


def _master(store: Path, found: list[Finding]) -> bytes | None:
    try:
        return load_master(store)
    except (OSError, MusterError) as error:
        why = getattr(error, "strerror", None) or error
        found.append(Finding(DAMAGE, "keys/master", f"cannot be read ({why}): signatures were not checked"))
        return None


def _agents(store: Path) -> list[str]:
    """Folders of agents by their names, on the roster or not."""
    try:
        names = sorted(os.listdir(store / "agents"))
    except OSError:
        return []
    return [name for name in names if _is_name(name) and os.path.isdir(f"{store}/agents/{name}")]


def _is_name(name: str) -> bool:
    try:
        agent_id(name, allow_reserved=True)
    except InvalidNameError:
        return False
    return True


def _agent(store: Path, agent: str) -> Iterator[Finding]:
    base, place = layout.agent_dir(store, agent), f"agents/{agent}"
    lock = f"{base}/inbox.lock"
    # Modes of the agent's own folder and files are mended without a lock: the lock files are among them, and closing a file to others
    # disturbs nobody who holds it.
    yield from check_folder(base, place, lambda name: _OF_AGENT.get(name, ""), None)
    retired = is_retired(store, agent)
    missing = [
        name
        for name in ("inbox", "outbox", "inbox/dead", "inbox.lock", "outbox.lock")
        if not os.path.lexists(f"{base}/{name}")
    ]
    if not retired and not os.path.lexists(f"{base}/bell"):
        missing.append("bell")
    if retired:
        yield from _about_retired(store, agent)
    for name in missing:
        severity = NOTICE if len(missing) > 1 and "bell" in missing and "inbox/dead" in missing else DAMAGE
        yield Finding(
            severity,
            f"{place}/{name}",
            "is missing",
            remedy="make it",
            lock=lock,
            cure=partial(layout.add_agent, store, agent),
        )
    yield from check_folder(
        f"{base}/outbox", f"{place}/outbox", lambda name: "folder" if _lane(name) else "", f"{base}/outbox.lock"
    )
    for name in sorted(os.listdir(f"{base}/outbox")) if os.path.isdir(f"{base}/outbox") else ():
        if _lane(name):
            yield from check_folder(
                f"{base}/outbox/{name}", f"{place}/outbox/{name}", _expect_in_lane, f"{base}/outbox.lock"
            )


def _about_retired(store: Path, agent: str) -> Iterator[Finding]:
    place = f"agents/{agent}"
    depth = inspect.inbox_depth(store, agent)
    if depth:
        yield Finding(
            DAMAGE, place, f"is retired, and {depth:,} messages wait for it", remedy="make them dead letters",
            cure=partial(retire_agent, store, agent),
        )  # fmt: skip
    outbox = f"{layout.agent_dir(store, agent)}/outbox"
    if any(_is_finalised(store, agent, name) for name in (os.listdir(outbox) if os.path.isdir(outbox) else ())):
        yield Finding(
            NOTICE, place, "is retired, and lanes of its own have been read to their end", remedy="remove them", lock=f"{outbox}.lock",
            cure=partial(reclaim_lanes, store, agent),
        )  # fmt: skip


def _is_finalised(store: Path, agent: str, name: str) -> bool:
    lane = _lane(name)
    view = inspect.view_lane(store, agent, lane[0], control=lane[1]) if lane is not None else None
    return view is not None and not view.depth


def _lane(name: str) -> tuple[str, bool] | None:
    try:
        return layout.parse_lane_name(name)
    except InvalidNameError:
        return None


def _expect_in_lane(name: str) -> str:
    is_segment = len(name) == 24 and name.endswith(".seg") and name[:20].isdigit()
    return "file" if name in ("lane", "ids") or is_segment else ""


def _lanes(store: Path, agents: list[str]) -> Iterator[Lane]:
    for sender in agents:
        outbox = f"{layout.agent_dir(store, sender)}/outbox"
        for name in sorted(os.listdir(outbox)) if os.path.isdir(outbox) else ():
            lane = _lane(name)
            if lane is not None and os.path.isdir(f"{outbox}/{name}") and not os.path.islink(f"{outbox}/{name}"):
                yield sender, *lane


def _event_log(log: Path) -> Iterator[Finding]:
    """The coordinator's log: one writer, no peer, records with a checksum. What is wrong with it is told; its coordinator decides."""
    firsts = list_segments(str(log))
    if not firsts:
        return
    place = "coordinator/log"
    try:
        lane_id = page_id(read_private(log / "lane"), outlane.MAGIC)
    except (OSError, MusterError):
        lane_id = None
    if lane_id is None:
        yield Finding(LOSS, place, "the page of the event log is damaged: the coordinator begins a new one")
        return
    for at, first in enumerate(firsts):
        following = firsts[at + 1] if at + 1 < len(firsts) else None
        try:
            data = read_private(log / segment_name(first))
        except FileNotFoundError:  # a snapshot covers it now
            continue
        for span in walk(data, lane_id, first):
            if isinstance(span, Frame):
                good = digest(CHECKSUM_KEY, span.content[:-TAG_BYTES]) == span.content[-TAG_BYTES:]
                if not good:
                    yield Finding(
                        LOSS, place, f"record {span.seq:,} of the event log is damaged", first=span.seq, last=span.seq
                    )
            elif isinstance(span, Gap):
                yield Finding(
                    LOSS, place, f"records {span.first:,} to {span.last:,} of the event log are damaged", first=span.first,
                    last=span.last,
                )  # fmt: skip
            elif span.how in ("damaged", "cut") or (following or span.seq) != span.seq:
                yield Finding(LOSS, place, f"the event log is damaged from record {span.seq:,} on", first=span.seq)
