"""The barrier under threads and signals; one holder for each lock file, whatever becomes of the file."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muster import errors
from muster.bus.transports.lanes import locks, words
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, load_master

from .lanes_world import Joined


def test_the_barrier_serves_eight_threads_at_once() -> None:
    start, crossed = threading.Barrier(8), []

    def cross_often() -> None:
        start.wait()
        for _ in range(20_000):
            words.barrier()
        crossed.append(words._own.lock)

    threads = [threading.Thread(target=cross_often, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20.0)
    assert len(crossed) == 8
    assert len(set(crossed)) == 8, "each has a lock of its own"
    assert all(lock.locked() for lock in crossed)


class InterruptedOnce:
    """A lock of which the first release is followed by a signal, so that its handler runs between the barrier's two steps."""

    def __init__(self) -> None:
        self.real = threading.Lock()
        self.real.acquire()
        self.acquire, self.left = self.real.acquire, 1

    def release(self) -> None:
        self.real.release()
        if self.left:
            self.left = 0
            signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], object]], InterruptedOnce]]:
    before = signal.getsignal(signal.SIGUSR1)

    def prepare(handler: Callable[[], object]) -> InterruptedOnce:
        lock = InterruptedOnce()
        monkeypatch.setattr(words._own, "lock", lock)
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        return lock

    yield prepare
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_that_raises_inside_the_barrier_breaks_no_later_one(
    join: Joined, interrupted: Callable[[Callable[[], object]], InterruptedOnce]
) -> None:
    alice, bob = join("alice"), join("bob")

    def stop() -> None:
        raise KeyboardInterrupt

    lock = interrupted(stop)
    with pytest.raises(KeyboardInterrupt):
        words.barrier()
    assert not lock.real.locked()
    for n in range(3):
        alice.post("bob", n)
    assert [delivery.body for delivery in iter(bob.receive_nowait, None)] == [0, 1, 2]
    assert lock.real.locked()


@pytest.mark.timeout(10)
def test_a_signal_handler_that_sends_does_not_wait_for_the_barrier_that_it_interrupted(
    join: Joined, interrupted: Callable[[Callable[[], object]], InterruptedOnce]
) -> None:
    alice, bob = join("alice"), join("bob")
    lock = interrupted(lambda: alice.post("bob", "from the handler"))
    words.barrier()
    assert lock.real.locked()
    assert [delivery.body for delivery in iter(bob.receive_nowait, None)] == ["from the handler"]


def acquired_elsewhere(path: Path) -> bool:
    """Whether another process can take the lock now."""
    pid = os.fork()
    if pid == 0:
        os._exit(locks.acquire(str(path)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_one_lock_file_has_one_holder_however_it_is_spelled(store: Path, join: Joined) -> None:
    bob = join("bob")
    (link := store.parent / "link").symlink_to(store)
    keyring = Keyring.from_master(load_master(store), "bob")
    for spelling in (link, store / ".." / store.name):
        with pytest.raises(errors.IdentityBusyError):
            LanesTransport(spelling, "bob", keyring)
        assert locks.holder(str(spelling / "agents/bob/inbox.lock")) == os.getpid()
    assert not acquired_elsewhere(store / "agents/bob/inbox.lock"), "being refused drops no lock"
    bob.transport.close()
    assert acquired_elsewhere(store / "agents/bob/inbox.lock")


def test_letting_go_of_a_removed_lock_file_frees_its_descriptor_and_no_lock_of_its_successor(tmp_path: Path) -> None:
    path, open_before = tmp_path / "lock", len(os.listdir("/proc/self/fd"))
    assert locks.acquire(str(path))
    path.unlink()
    assert locks.acquire(str(path)), "a file made anew has a lock of its own"
    locks.release(str(path))
    assert not acquired_elsewhere(path)
    locks.release(str(path))
    assert acquired_elsewhere(path)
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert locks.acquire(str(path))
    path.unlink()
    locks.release(str(path))
    assert len(os.listdir("/proc/self/fd")) == open_before
