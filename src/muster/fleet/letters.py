"""What `muster dead` does: find dead letters over all inboxes of a store, show, redrive and drop them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from muster.bus.transports.lanes import layout, redrive
from muster.bus.transports.lanes.deadletters import Letter, letters_in, message_of, number_of, read_letter
from muster.core.message import CONTENT_TYPES, decode_body
from muster.errors import BodyEncodingError, MusterError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

#: So much of an id may stand for the whole, if it is the only one that begins so.
PREFIX_CHARS_MIN = 8
UNREADABLE = "unreadable dead letter"


class Found(NamedTuple):
    """A dead letter, and in whose inbox it lies."""

    agent: str
    letter: Letter

    @property
    def facts(self) -> dict[str, Any]:
        """What `list` says of it. `from` is whose lane it came by: that was verified, whatever the letter says."""
        told = self.letter.facts or {}
        dead_ns = number_of(told, "dead_ns")
        return {
            "id": self.letter.id,
            "agent": self.agent,
            "from": self.letter.lane.removesuffix(layout.CONTROL_SUFFIX) or None,
            "type": _text(told, "type"),
            "age_s": round(max(0.0, (time.time_ns() - dead_ns) / 1e9), 3) if dead_ns else None,
            "attempts": number_of(told, "attempts"),
            "reason": _text(told, "reason") or UNREADABLE,
            "body_bytes": self.letter.body_bytes,
            "seq": self.letter.seq or None,
            "letter": self.letter.name,
        }


def _text(told: dict[str, Any], key: str) -> str | None:
    value = told.get(key)
    return value if isinstance(value, str) else None


class Filters(NamedTuple):
    """Which letters are meant; None: any."""

    agent: str | None = None
    sender: str | None = None
    type: str | None = None
    reason_contains: str | None = None
    older_than_s: float | None = None

    def fit(self, found: Found) -> bool:
        facts = found.facts
        return (
            self.sender in (None, facts["from"])
            and self.type in (None, facts["type"])
            and (self.reason_contains is None or self.reason_contains.casefold() in facts["reason"].casefold())
            and (self.older_than_s is None or (facts["age_s"] is not None and facts["age_s"] >= self.older_than_s))
        )


def find(store: Path, filters: Filters = Filters()) -> list[Found]:  # noqa: B008 -- immutable
    """Every dead letter of the store that fits, oldest first; those of retired agents too.

    Raises:
        UsageError: `filters.agent` has no inbox here.
    """
    agents = sorted(os.listdir(store / "agents"))
    if filters.agent is not None:
        if filters.agent not in agents:
            raise UsageError(f"there is no agent {filters.agent!r:.80} in {store.name}", agent=filters.agent)
        agents = [filters.agent]
    found = [
        Found(agent, letter) for agent in agents for letter in letters_in(f"{layout.agent_dir(store, agent)}/inbox")
    ]
    return sorted(filter(filters.fit, found), key=lambda one: number_of(one.letter.facts, "dead_ns"))


def chosen(store: Path, filters: Filters, ids: Collection[str], *, everything: bool) -> list[Found]:
    """The letters named by `ids` (of a message or of a letter's file, or the beginning of one), or with `everything` all that fit.

    Raises:
        UsageError: Neither or both were given, or an id fits none or several; nothing was done.
    """
    if everything == bool(ids):
        raise UsageError("name dead letters by their ids, or say --all" if not ids else "either ids or --all, not both")
    found = find(store, filters)
    if everything:
        return found
    meant: dict[str, Found] = {}
    for wanted in ids:
        for one in _named(found, wanted):
            meant[f"{one.agent}/{one.letter.name}"] = one
    return list(meant.values())


def _named(found: list[Found], wanted: str) -> list[Found]:
    """The letters an id means: those of that message, or that file; else the one whose id begins so."""
    exact = [one for one in found if wanted in (one.letter.id, one.letter.name)]
    if exact:
        return exact
    begun = [one for one in found if len(wanted) >= PREFIX_CHARS_MIN and one.letter.id.startswith(wanted)]
    if not begun:
        raise UsageError(f"there is no dead letter {wanted!r:.100}; `muster dead list` shows them", id=wanted)
    if len({one.letter.id for one in begun}) > 1:
        raise UsageError(
            f"{wanted!r:.100} is the beginning of {len(begun)} dead letters' ids; give more of it", id=wanted
        )
    return begun


def put_back(store: Path, found: Iterable[Found]) -> list[dict[str, Any]]:
    """Redrive letters: each goes to its recipient again as the message it was. What became of each, as `outcome` and `detail`."""
    return [{**_names(one), **_put_back(store, one)} for one in found]


def _put_back(store: Path, one: Found) -> dict[str, str]:
    if not layout.has_agent(store, one.agent):
        return {"outcome": "refused", "detail": f"{one.agent} is not on the roster any more"}
    if not one.letter.verified:
        return {"outcome": "refused", "detail": "its signature was wrong or it is unreadable, so it is never delivered"}
    try:
        message_of(*read_letter(one.letter.path))  # type: ignore[arg-type]
        moved = redrive.put_back(store / "agents" / one.agent, one.letter.name)
    except FileNotFoundError:
        moved = False
    except (MusterError, OSError, ValueError) as error:
        return {"outcome": "refused", "detail": str(error)}
    if not moved:
        return {"outcome": "gone", "detail": "somebody else redrove or dropped it just now"}
    return {"outcome": "redriven", "detail": f"waits in the inbox of {one.agent}"}


def drop(found: Iterable[Found]) -> list[dict[str, Any]]:
    """Remove letters for good. What became of each."""
    results = []
    for one in found:
        outcome = "gone"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(one.letter.path)
            outcome = "dropped"
        results.append({**_names(one), "outcome": outcome})
    return results


def _names(one: Found) -> dict[str, Any]:
    return {key: one.facts[key] for key in ("id", "agent", "from", "letter")}


def show(one: Found) -> dict[str, Any]:
    """Everything about a letter, with its body decoded as far as its content type can be believed (else the bytes as they are).

    Raises:
        UnsafePermissionsError, OSError: The file cannot be read.
    """
    told, raw = read_letter(one.letter.path)
    known = told or {}
    facts = {
        **one.facts,
        **{key: known[key] for key in ("created_ns", "dead_ns", "control", "hops", "extras") if known.get(key)},
        "content_type": CONTENT_TYPES[number_of(known, "content") % len(CONTENT_TYPES)],
        "verified": one.letter.verified,
    }
    try:
        facts["body"] = decode_body(raw, number_of(told, "content")) if told and one.letter.verified else raw
    except (BodyEncodingError, KeyError):
        facts["body"] = raw
    return facts
