"""Targets that damage a whole store, then let everybody who reads one have a go at it.

An input is a list of wounds: which file, how, where, and with what. The store is a golden one (tests/unit/golden_store.py), so that every
kind of file is there: lanes of both classes, taken, acked and dead messages, explicit ids, evictions, a redriven letter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from functools import cache, partial
from pathlib import Path

from tests.unit import golden_store

from muster.bus.bus import Bus
from muster.bus.store import read_settings, unread
from muster.bus.transports.lanes import peek
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.fsck.store import check_store
from muster.bus.transports.lanes.tombstones import list_tombstones
from muster.bus.transports.lanes.transport import LanesTransport
from muster.errors import BodyEncodingError, MusterError
from muster.security.keys import Keyring, load_master, pair_key, receive_root

from .files import folder, scratch
from .target import Target, holds

#: A wound's bytes: file, kind, where (2), how much, then so many bytes.
_WOUND_HEAD = 5
_RECEIVED_MAX = 200


@cache
def _whole() -> tuple[Path, list[str]]:
    """The store before its damage, and the names of what can be hurt in it: everything but the key."""
    parent = folder("whole")
    store = parent / "fleet"
    if not store.exists():
        golden_store.unpack(golden_store.archive_of(2), parent)
    names = sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())
    return store, [name for name in names if name != "keys/master"]


def _fresh() -> Path:
    store = scratch() / "hurt"
    shutil.rmtree(store, ignore_errors=True)
    for name in ("sockets", "keys"):
        (_whole()[0] / name).mkdir(mode=0o700, exist_ok=True)
    _copy(_whole()[0], store)
    return store


def _copy(source: Path, target: Path) -> None:
    """`shutil.copytree` that knows FIFOs."""
    os.mkdir(target, 0o700)
    for entry in os.scandir(source):
        if entry.is_dir():
            _copy(Path(entry.path), target / entry.name)
        elif entry.is_file():
            shutil.copy(entry.path, target / entry.name)
        else:
            os.mkfifo(target / entry.name, 0o600)


def _hurt(store: Path, data: bytes) -> None:
    names = _whole()[1]
    at = 0
    while at + _WOUND_HEAD <= len(data):
        which, kind, where, size = data[at], data[at + 1], int.from_bytes(data[at + 2 : at + 4], "little"), data[at + 4]
        _wound(store / names[which % len(names)], kind % 7, where, data[at + _WOUND_HEAD : at + _WOUND_HEAD + size])
        at += _WOUND_HEAD + size


def _wound(path: Path, kind: int, where: int, content: bytes) -> None:
    with contextlib.suppress(OSError):
        if kind == 0:
            path.unlink()
        elif kind == 1:
            os.truncate(path, where)
        elif kind == 2:
            path.rename(path.with_name(content.decode("latin-1").replace("/", "_").replace("\0", "_")[:80] or "x"))
        elif kind == 3:
            path.unlink()
            path.mkdir(0o700)
        else:
            _overwrite(path, where % max(1, path.stat().st_size), content)


def _overwrite(path: Path, at: int, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.pwrite(fd, content, at)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _refusals():
    """What every reader may say of a damaged store."""
    with contextlib.suppress(MusterError):
        yield


def _receive(store: Path, agent: str, keyring: Keyring) -> None:
    with _refusals():
        transport = LanesTransport(store, agent, keyring)
        try:
            _take_all(Bus(transport), agent)
        finally:
            transport.close()


def _take_all(bus: Bus, agent: str) -> None:
    count = 0
    while (delivery := bus.receive_nowait()) is not None:
        count += 1
        holds(count < _RECEIVED_MAX, "what was stored comes a bounded number of times")
        holds(delivery.message.recipient == agent, "nobody is given another's messages")
        with contextlib.suppress(BodyEncodingError):
            repr(delivery.message.body)
        delivery.ack()
    for to in ("alice", "bob", "dora"):
        if to != agent:
            with _refusals():
                bus.post(to, {"after": "damage"})


def _look_at(store: Path, master: bytes) -> None:
    """Everybody who reads without taking part."""
    for look in (read_settings, unread, peek.inbox_views):
        with _refusals():
            look(store)
    for agent in golden_store.AGENTS:
        inbox = f"{store}/agents/{agent}/inbox"
        with _refusals():
            list(peek.waiting(store, agent, partial(pair_key, receive_root(master, agent))))
        for look_at in (list_letters, list_tombstones):
            with _refusals():
                look_at(inbox)


def use(data: bytes) -> None:
    """Everybody looks, receives and sends; nobody meets anything but typed errors."""
    store = _fresh()
    _hurt(store, data)
    master = load_master(store)
    _look_at(store, master)
    for agent in golden_store.AGENTS:
        _receive(store, agent, Keyring.from_master(master, agent))


def check(data: bytes) -> None:
    """fsck ends, never with a traceback, changes nothing unless it is asked to, and what it mends stays mended."""
    store = _fresh()
    _hurt(store, data)
    before = _contents(store)
    check_store(store)
    holds(_contents(store) == before, "a check changes nothing")
    check_store(store, repair=True)
    second = check_store(store, repair=True)
    holds(
        not [finding for finding in second if finding.outcome == "repaired"],
        "a second repair finds nothing left to mend",
    )
    master = load_master(store)
    for agent in golden_store.AGENTS:
        _receive(store, agent, Keyring.from_master(master, agent))


def _contents(store: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in store.rglob("*")}


def wound(name: str, kind: int, where: int, content: bytes = b"") -> bytes:
    which = _whole()[1].index(name)
    return bytes([which, kind]) + where.to_bytes(2, "little") + bytes([len(content)]) + content


def _seeds() -> list[bytes]:
    """Each file gone, cut, and hurt at its beginning; a few pairs."""
    made = [b""]
    for name in _whole()[1]:
        if "spare" in name or name.endswith(".lock"):
            continue
        made += [wound(name, 0, 0), wound(name, 1, 33), wound(name, 5, 64, b"\xff" * 24)]
    lane = "agents/alice/outbox/bob"
    made.append(wound(f"{lane}/lane", 5, 8, b"x" * 16) + wound(f"{lane}/{1:020d}.seg", 5, 200, b"\0" * 8))
    made.append(wound("agents/bob/inbox/alice.cursor", 5, 32, b"\0" * 24) + wound(f"{lane}/{8:020d}.seg", 1, 4096))
    return made


TARGETS = [
    Target("store", use, _seeds, (), mutations=60),
    Target("fsck", check, _seeds, (), mutations=40),
]
