"""Durable stores: what is accepted is on the disk, what is not is not seen, and what is unlinked is never needed again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.transport import LanesTransport
from muster.core.settings import BusSettings
from muster.errors import StoreError
from muster.security.keys import Keyring, load_master

BODY = b"x" * 1000  # seven of them fill the first segment


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = create_store(tmp_path / "fleet", BusSettings(durable=True))
    for agent in ("alice", "bob"):
        add_agent(made, agent)
    return made


@pytest.fixture
def join(store: Path) -> Iterator[Callable[[str], Bus]]:
    buses: list[Bus] = []

    def open_bus(agent: str) -> Bus:
        buses.append(Bus(LanesTransport(store, agent, Keyring.from_master(load_master(store), agent))))
        return buses[-1]

    yield open_bus
    for bus in buses:
        bus.transport.close()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were synced, in order."""
    names: list[str] = []
    real = os.fdatasync

    def noted(fd: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    return names


def finish_all(bus: Bus) -> list[Any]:
    bodies = []
    while (delivery := bus.receive_nowait()) is not None:
        bodies.append(delivery.body)
        delivery.ack()
    return bodies


def test_post_returns_only_after_its_segment_was_synced(join: Callable[[str], Bus], synced: list[str]) -> None:
    alice = join("alice")
    for n in range(3):
        before = len(synced)
        alice.post("bob", n)
        assert synced[before:] == [f"{1:020d}.seg"]


def test_a_recipient_sees_nothing_before_the_sync(join: Callable[[str], Bus]) -> None:
    alice, bob = join("alice"), join("bob")
    alice._post("bob", "stored, not synced", {})
    bob.transport.scan()
    assert bob.receive_nowait() is None
    alice.transport.flush()
    assert finish_all(bob) == ["stored, not synced"]


async def test_all_who_send_in_one_turn_share_one_sync(join: Callable[[str], Bus], synced: list[str]) -> None:
    alice = join("alice")
    await alice.send("bob", "first: it makes the lane")
    synced.clear()
    await asyncio.gather(*(alice.send("bob", n) for n in range(50)))
    assert synced == [f"{1:020d}.seg"]


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_disk_that_refuses_ends_the_send_and_the_next_one_makes_up_for_it(
    join: Callable[[str], Bus], monkeypatch: pytest.MonkeyPatch, *, awaited: bool
) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "kept")

    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(StoreError, match="disk refused"):
            await alice.send("bob", "refused") if awaited else alice.post("bob", "refused")
        assert finish_all(bob) == ["kept"], "what the disk did not take is not shown"
    written: list[int] = []
    real = os.pwrite

    def noted(fd: int, data: bytes, at: int) -> int:
        written.append(at)
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", noted)
    alice.post("bob", "next")
    assert 0 in written, "pages that a failed sync left are written anew, from the beginning of the segment"
    assert finish_all(bob) in (["refused", "next"], ["next"])


def test_acks_are_on_the_disk_before_what_they_cover_is_unlinked(
    join: Callable[[str], Bus], synced: list[str], monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    alice, bob = join("alice"), join("bob")
    real = os.unlink

    def noted(path: Any, **options: Any) -> None:
        if str(path).endswith(".seg"):
            synced.append("unlinked")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", noted)
    for n in range(30):
        alice.post("bob", [n, BODY])
        assert finish_all(bob) == [[n, BODY]]
    assert "unlinked" in synced
    for at, what in enumerate(synced):
        if what == "unlinked":
            assert "alice.cursor" in synced[:at]
            assert synced[at - 1] in ("alice.cursor", "unlinked")


def test_a_dead_sender_leaves_nothing_unread_that_was_stored(join: Callable[[str], Bus], synced: list[str]) -> None:
    """It died between its frame and its sync: whoever reads makes sure that the disk has it first."""
    alice = join("alice")
    alice.post("bob", "kept")
    alice._post("bob", "never synced by its sender", {})
    alice.transport.close()
    synced.clear()
    assert finish_all(join("bob")) == ["kept", "never synced by its sender"]
    assert synced == [f"{1:020d}.seg"]


def test_a_rewound_durable_lane_begins_anew_and_its_messages_are_seen(join: Callable[[str], Bus], store: Path) -> None:
    alice, bob = join("alice"), join("bob")
    for n in range(5):
        alice.post("bob", n)
    assert finish_all(bob) == list(range(5))
    alice.transport.close()
    for segment in (store / "agents/alice/outbox/bob").glob("*.seg"):
        segment.unlink()
    join("alice").post("bob", "anew")
    bob.transport.scan()
    assert finish_all(bob) == ["anew"]
