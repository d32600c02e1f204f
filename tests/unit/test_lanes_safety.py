"""Forged, replayed, torn and damaged frames; foreign owners and open modes; identities and forks; full stores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muster import errors
from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store, open_store, unread
from muster.bus.transports.lanes import locks, segment
from muster.bus.transports.lanes.probe import REFUSED, check, filesystem_of
from muster.bus.transports.lanes.transport import LanesTransport
from muster.security.keys import Keyring, grant_for, load_master


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = create_store(tmp_path / "fleet")
    for agent in ("alice", "bob", "mallory"):
        add_agent(made, agent)
    return made


class Opened:
    """Buses of a test, closed at its end."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.buses: list[Bus] = []

    def __call__(self, agent: str, keyring: Keyring | None = None) -> Bus:
        keyring = keyring or Keyring.from_master(load_master(self.store), agent)
        bus = Bus(LanesTransport(self.store, agent, keyring))
        self.buses.append(bus)
        return bus


@pytest.fixture
def join(store: Path) -> Iterator[Opened]:
    opened = Opened(store)
    yield opened
    for bus in opened.buses:
        bus.transport.close()


def only_segment(store: Path, sender: str, recipient: str) -> Path:
    directory = store / "agents" / sender / "outbox" / recipient
    return directory / segment.segment_name(segment.list_segments(str(directory))[-1])


def test_a_message_signed_with_another_pairs_key_is_quarantined_and_the_next_is_delivered(
    store: Path, join: Opened
) -> None:
    master = load_master(store)
    stolen = grant_for(master, "mallory", ["bob"]).pair_keys  # mallory's own edge, used to speak as alice
    forger = join("alice", Keyring("alice", b"r" * 32, edges=stolen))
    forger.post("bob", "pay mallory", type="order")
    forger.transport.close()
    honest = join("alice")
    honest.post("bob", "good morning")
    bob = join("bob")
    delivery = bob.receive_nowait()
    assert delivery is not None
    assert delivery.body == "good morning"
    assert bob.stats.bad_frames == 1
    assert bob.receive_nowait() is None


def test_an_agent_without_the_edges_key_cannot_send_at_all(store: Path, join: Opened) -> None:
    keyring = Keyring.from_grant(grant_for(load_master(store), "alice", ["mallory"]))
    alice = join("alice", keyring)
    with pytest.raises(errors.ForbiddenError):
        alice.post("bob", 1)
    assert not os.path.exists(only_lane := store / "agents/alice/outbox/bob/00000000000000000001.seg"), only_lane


@pytest.mark.parametrize("at", [8, 12, 30, 40, 60, 80, 100, 120])
def test_one_flipped_bit_anywhere_in_a_frame_is_not_delivered_and_harms_no_neighbour(
    store: Path, join: Opened, at: int
) -> None:
    alice = join("alice")
    alice.post("bob", "victim" * 10)
    alice.post("bob", "neighbour")
    path = only_segment(store, "alice", "bob")
    raw = bytearray(path.read_bytes())
    raw[segment.HEADER_BYTES + at] ^= 1
    path.write_bytes(raw)
    bob = join("bob")
    delivery = bob.receive_nowait()
    assert delivery is not None
    assert delivery.body == "neighbour"
    assert bob.stats.bad_frames + bob.stats.gaps == 1


def test_a_damaged_commit_word_is_reported_as_a_numbered_gap(store: Path, join: Opened) -> None:
    alice = join("alice")
    for n in range(3):
        alice.post("bob", n)
    path = only_segment(store, "alice", "bob")
    raw = bytearray(path.read_bytes())
    raw[segment.HEADER_BYTES + 1] ^= 0xFF
    path.write_bytes(raw)
    bob = join("bob")
    assert [d.body for d in iter(bob.receive_nowait, None)] == [1, 2]
    assert bob.transport.gaps == [("alice", 1, 1)]
    assert bob.stats.gaps == 1


def test_a_replayed_frame_is_not_delivered_again_in_its_own_nor_in_another_lane(store: Path, join: Opened) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "pay once")
    first = bob.receive_nowait()
    assert first is not None
    first.ack()
    path = only_segment(store, "alice", "bob")
    frame_at = segment.HEADER_BYTES
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[frame_at : frame_at + 4], "little")
    size = 8 + segment.padded(length)
    raw[frame_at + size : frame_at + 2 * size] = raw[frame_at : frame_at + size]  # the same bytes again as "number 2"
    alice.transport.close()
    path.write_bytes(raw)
    bob.transport.scan()
    assert bob.receive_nowait() is None
    # The same frame put into another sender's lane: another key, another lane id.
    mallory = join("mallory")
    mallory.post("bob", "x")
    theirs = only_segment(store, "mallory", "bob")
    copy = bytearray(theirs.read_bytes())
    copy[frame_at : frame_at + size] = raw[frame_at : frame_at + size]
    theirs.write_bytes(copy)
    bob.transport.scan()
    assert bob.receive_nowait() is None


def test_a_bell_full_of_rubbish_is_only_a_hint(store: Path, join: Opened) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", "real")
    fd = os.open(store / "agents/bob/bell", os.O_WRONLY | os.O_NONBLOCK)
    for junk in (b"m ../../etc\n", b"m nobody\n", b"\xff\xfe\n", b"x" * 3000, b"\nm \n", b"a bob\n"):
        os.write(fd, junk)
    os.close(fd)
    delivery = bob.receive_nowait()
    assert delivery is not None
    assert delivery.body == "real"


def test_a_truncated_segment_ends_in_an_error_count_not_in_a_crash(store: Path, join: Opened) -> None:
    alice, bob = join("alice"), join("bob")
    alice.post("bob", b"x" * 3000)
    alice.transport.close()
    os.truncate(only_segment(store, "alice", "bob"), 1000)
    bob.transport.scan()
    assert bob.receive_nowait() is None
    carol = join("mallory")
    carol.post("bob", "others are undisturbed")
    delivery = bob.receive_nowait()
    assert delivery is not None
    assert delivery.body == "others are undisturbed"


def test_a_store_directory_with_an_open_mode_is_refused(tmp_path: Path) -> None:
    for mode in (0o755, 0o777, 0o750):
        path = tmp_path / f"open-{mode:o}"
        path.mkdir()
        path.chmod(mode)
        with pytest.raises(errors.UnsafePermissionsError, match=f"0{mode:o}"):
            create_store(path)
        assert not (path / "keys").exists()


def test_a_planted_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.UnsafePermissionsError, match="symbolic link"):
        create_store(tmp_path / "link")
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory of another user")
def test_a_store_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)
    with pytest.raises(errors.UnsafePermissionsError, match="belongs to user 65534"):
        create_store(path)


def test_a_missing_store_is_a_sentence_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(errors.FleetNotRunningError):
        open_store(tmp_path / "nothing")


def test_an_identity_held_by_another_process_is_refused_with_its_pid_and_freed_by_its_death(
    store: Path, join: Opened
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from muster.bus.transports.lanes.transport import LanesTransport;"
        "from muster.security.keys import Keyring, load_master; s = Path(sys.argv[1]);"
        "t = LanesTransport(s, 'alice', Keyring.from_master(load_master(s), 'alice')); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(errors.IdentityBusyError) as caught:
            join("alice")
        assert caught.value.facts["pid"] == child.pid
        assert locks.holder(str(store / "agents/alice/inbox.lock")) == child.pid
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    join("alice")


def test_a_bus_used_after_a_fork_raises_in_the_child(join: Opened) -> None:
    alice = join("alice")
    alice.post("bob", 1)
    pid = os.fork()
    if pid == 0:
        try:
            alice.post("bob", 2)
        except errors.ForkedBusError:
            os._exit(17)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17


def test_ids_do_not_repeat_over_forks(join: Opened) -> None:
    from muster.core.ids import new_id

    reader, writer = os.pipe()
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"".join(new_id() for _ in range(100)))
            os._exit(0)
        os.waitpid(pid, 0)
    data = os.read(reader, 65536) + b"".join(new_id() for _ in range(5000))
    os.close(reader)
    os.close(writer)
    ids = [data[at : at + 16] for at in range(0, len(data), 16)]
    assert len(ids) == len(set(ids)) == 5800
    assert all(raw[6] >> 4 == 7 and raw[8] >> 6 == 2 for raw in ids), "version 7, variant of RFC 9562"


def test_keys_do_not_show_in_representations(store: Path) -> None:
    keyring = Keyring.from_master(load_master(store), "alice")
    keyring.sign_key("bob")
    assert load_master(store).hex()[:16] not in repr(keyring) + str(vars(keyring).keys())


def test_unread_counts_users_messages_and_dead_letters_but_not_musters_own(store: Path, join: Opened) -> None:
    alice, bob = join("alice"), join("bob")
    assert unread(store) == 0
    alice.post("bob", 1, type="greeting")
    alice.post("bob", 1, type="greeting")
    alice.post("bob", {}, type="metrics.snapshot")
    assert unread(store) == 2
    first = bob.receive_nowait()
    assert first is not None
    first.dead_letter("no")
    second = bob.receive_nowait()
    assert second is not None
    second.ack()
    assert unread(store) == 1


def test_the_probe_accepts_a_local_directory_and_names_its_file_system(tmp_path: Path) -> None:
    check(tmp_path)
    assert filesystem_of(tmp_path) not in REFUSED
    assert os.listdir(tmp_path) == []


def test_the_probe_refuses_what_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreTooSmallError):
        check(tmp_path, room_bytes=1 << 60)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_store_refuses_cleanly_drains_everything_and_accepts_again(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(mount)], check=True)
    opened = None
    try:
        store = create_store(mount / "fleet")
        for agent in ("alice", "bob"):
            add_agent(store, agent)
        opened = Opened(store)
        alice, bob = opened("alice"), opened("bob")
        accepted = 0
        with pytest.raises(errors.StoreFullError) as caught:
            for _ in range(1000):
                alice.post("bob", [accepted, b"x" * 2000])
                accepted += 1
        assert caught.value.retry_after_s
        assert accepted > 100
        for round_ in range(3):
            seen = []
            while (delivery := bob.receive_nowait()) is not None:
                seen.append(delivery.body[0])
                delivery.ack()
            assert seen == list(range(accepted)), f"round {round_}"
            alice.transport.on_bell()
            accepted = 0
            with pytest.raises((errors.StoreFullError, errors.InboxFullError)):
                for _ in range(1200):
                    alice.post("bob", [accepted, b"x" * 2000])
                    accepted += 1
            assert accepted > 100
    finally:
        if opened is not None:
            for bus in opened.buses:
                bus.transport.close()
        subprocess.run(["umount", str(mount)], check=True)
