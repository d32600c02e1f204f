"""The coordinator's event log on disk: facts in groups, snapshots, replay.

One record holds the facts of one loop turn (group commit) or a part of them: each fact stands alone, so a crash between two records is a
crash between two facts. A snapshot is the state up to a record; it is written beside the log and renamed, then older segments go. Start =
snapshot + the records behind it, through the same machine that decided the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from muster.bus.transports.lanes.appendlog import AppendLog, read_records
from muster.coordinator.events import AnyFact, Record, TasksSubmitted
from muster.coordinator.machine import Machine
from muster.coordinator.state import State, load, snapshot
from muster.errors import CorruptStoreError, StoreFullError, StoreVersionError
from muster.security.permissions import make_private_dir, read_private

#: A record is split near this size.
RECORD_BYTES = 256 << 10
#: A snapshot is due after this many bytes or facts behind the last one: replay then takes a fraction of a second.
SNAPSHOT_BYTES, SNAPSHOT_FACTS = 16 << 20, 25_000
#: And earlier when the state is small, so that an old fleet's log takes little room: after this many facts, …
SNAPSHOT_FACTS_MIN = 2_500
#: … but never before the facts outnumber the open tasks by so much, which a snapshot has to write anew.
FACTS_PER_OPEN_TASK = 5

_HEAD = struct.Struct("<8sQ32s")
_MAGIC = b"mustSNP1"
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[list[AnyFact]] = msgspec.msgpack.Decoder(list[AnyFact])


class EventLog:
    """One writer, the coordinator: its inbox lock keeps a second one away."""

    def __init__(self, directory: Path) -> None:
        """Open or create `directory`/log. Raises what `AppendLog` raises."""
        make_private_dir(directory)
        self._path = directory / "snapshot"
        self._log = AppendLog(directory / "log")
        self._unwritten: list[bytes] = []
        self._bytes = 0
        self._facts = 0

    def recover(self, make: Callable[[State | None], Machine] = Machine) -> tuple[Machine, list[Record]]:
        """The machine as it was, and every record that was decided since the snapshot (whether it was written down is not known).

        Raises:
            CorruptStoreError, StoreVersionError: Snapshot or log cannot be read; nothing was changed.
        """
        state, after = read_snapshot(self._path)
        machine = make(state)
        records: list[Record] = []
        for _, raw in self._log.replay(after):
            try:
                facts = _decoder.decode(raw)
            except msgspec.MsgspecError as error:
                raise StoreVersionError(f"the coordinator's log cannot be read by this version: {error}") from None
            self._bytes += len(raw)
            self._facts += len(facts)
            for fact in facts:
                records += [effect for effect in machine.apply(fact) if effect.__class__ is Record]
        return machine, records

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever logged."""
        return self._log.last_seq == 0

    def append(self, facts: list[AnyFact]) -> None:
        """Write facts down. Their effects may be carried out once this returns.

        Raises:
            StoreFullError: Not all of them are written; call `flush` once there is room, and carry nothing out before it returned.
        """
        if not facts:
            return
        self._facts += len(facts)
        raw = _encode(facts)
        self._unwritten += [raw] if len(raw) <= RECORD_BYTES or len(facts) == 1 else _split(facts)
        self.flush()

    def flush(self) -> None:
        """Write what could not be written before. Raises StoreFullError as `append` does."""
        before = self._log.last_seq
        try:
            self._log.append(self._unwritten)
        except StoreFullError:
            del self._unwritten[: self._log.last_seq - before]
            raise
        self._bytes += sum(map(len, self._unwritten))
        self._unwritten.clear()

    def release_reserve(self) -> bool:
        """Free the reserve file so that what was accepted can be written down. False if it is gone already."""
        return self._log.release_reserve()

    def snapshot_due(self, open_tasks: int) -> bool:
        """Whether enough was appended since the last snapshot, for a state with so many open tasks."""
        facts_max = min(SNAPSHOT_FACTS, max(SNAPSHOT_FACTS_MIN, FACTS_PER_OPEN_TASK * open_tasks))
        return self._bytes > SNAPSHOT_BYTES or self._facts > facts_max

    def write_snapshot(self, state: State) -> bool:
        """Store the state as of the last appended fact and drop what it covers. False if there was no room: the log goes on."""
        payload = snapshot(state)
        seq = self._log.last_seq
        temporary = self._path.with_name("snapshot.tmp")
        self._bytes = self._facts = 0
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _write_all(fd, _HEAD.pack(_MAGIC, seq, hashlib.sha256(payload).digest()) + payload)
                os.fsync(fd)  # before the rename: a rename that survives a power cut must not name an empty file
            finally:
                os.close(fd)
            os.rename(temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return False
        self._log.drop_before(seq + 1)
        self._log.restore_reserve()
        return True

    def close(self) -> None:
        """Let go of the files."""
        self._log.close()


def read_snapshot(path: Path) -> tuple[State | None, int]:
    """The state of a snapshot and the record that it covers last; (None, 0) if there is none.

    Raises:
        CorruptStoreError, StoreVersionError: It is damaged, or of another version.
    """
    try:
        raw = read_private(path)
    except FileNotFoundError:
        return None, 0
    payload = raw[_HEAD.size :]
    magic, seq, digest = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (b"", 0, b"")
    if magic != _MAGIC or hashlib.sha256(payload).digest() != digest:
        raise CorruptStoreError(f"the coordinator's snapshot {path} is damaged", path=str(path))
    try:
        return load(payload), seq
    except ValueError as error:
        raise StoreVersionError(f"the coordinator's snapshot cannot be read by this version: {error}") from None


def read_state(directory: Path) -> State | None:
    """The state of the coordinator whose log lies in `directory`, read without writing anything; None if there is none.

    While that coordinator lives, this is what it knew a moment ago.

    Raises:
        CorruptStoreError, StoreVersionError: Snapshot or log cannot be read.
    """
    state, after = read_snapshot(directory / "snapshot")
    machine = Machine(state)
    try:
        for _, raw in read_records(directory / "log", after):
            for fact in _decoder.decode(raw):
                machine.apply(fact)
    except FileNotFoundError:
        return state
    except msgspec.MsgspecError as error:
        raise StoreVersionError(f"the coordinator's log cannot be read by this version: {error}") from None
    return machine.state


def _split(facts: list[AnyFact]) -> list[bytes]:
    """Facts as records of bounded size; a long submission is cut into several (each of its tasks stands alone)."""
    records: list[bytes] = []
    group: list[AnyFact] = []
    size = 0
    for fact in _smaller(facts):
        fact_bytes = len(_encode(fact))
        if group and size + fact_bytes > RECORD_BYTES:
            records.append(_encode(group))
            group, size = [], 0
        group.append(fact)
        size += fact_bytes
    records.append(_encode(group))
    return records


def _smaller(facts: Iterable[AnyFact]) -> Iterable[AnyFact]:
    for fact in facts:
        if isinstance(fact, TasksSubmitted) and len(fact.tasks) > 1 and len(_encode(fact)) > RECORD_BYTES:
            middle = len(fact.tasks) // 2
            yield from _smaller(TasksSubmitted(fact.at_s, part) for part in (fact.tasks[:middle], fact.tasks[middle:]))
        else:
            yield fact


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
