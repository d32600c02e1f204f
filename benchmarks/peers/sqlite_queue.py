"""SQLite as a queue: one table ordered by recipient and number, WAL, a row deleted once acked.

`synchronous=OFF`, because it promises what muster's memory mode promises: a commit survives every process, not a power cut. An inbox has
one reader, so that taking needs no claim in the table: the reader remembers the number it has read up to, and a row that it did not
delete comes again to whoever reads next. SQLite wakes nobody: an idle reader looks at `data_version` and sleeps for half a millisecond.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.harness import MeasureError
from benchmarks.peers.port import WAIT_S
from benchmarks.setting import scratch

_LOOK_AGAIN_S = 0.0005
_TABLE = """
CREATE TABLE message (
    number INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, body BLOB NOT NULL
);
CREATE INDEX message_of ON message (recipient, number);
"""


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


class _Sending:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute
        self._run_many = connection.executemany

    async def send(self, to: str, bodies: list[bytes]) -> None:
        if len(bodies) == 1:
            self._run("INSERT INTO message (recipient, body) VALUES (?, ?)", (to, bodies[0]))
            return
        self._run("BEGIN IMMEDIATE")
        self._run_many("INSERT INTO message (recipient, body) VALUES (?, ?)", [(to, body) for body in bodies])
        self._run("COMMIT")

    async def settle(self) -> None:
        pass


class _Receiving:
    def __init__(self, connection: sqlite3.Connection, me: str) -> None:
        self._run = connection.execute
        self._me = me
        self._first = self._read = 0

    async def receive(self, most: int) -> list[bytes]:
        rows = self._rows(most)
        if not rows:
            rows = self._wait(most)
        self._first, self._read = rows[0][0], rows[-1][0]
        return [body for _number, body in rows]

    def _rows(self, most: int) -> list[tuple[int, bytes]]:
        return self._run(
            "SELECT number, body FROM message WHERE recipient = ? AND number > ? ORDER BY number LIMIT ?",
            (self._me, self._read, most),
        ).fetchall()

    def _wait(self, most: int) -> list[tuple[int, bytes]]:
        deadline, version = time.monotonic() + WAIT_S, -1
        while time.monotonic() < deadline:
            now: int = self._run("PRAGMA data_version").fetchone()[0]
            if now != version:
                version = now
                if rows := self._rows(most):
                    return rows
            time.sleep(_LOOK_AGAIN_S)
        raise MeasureError(f"nothing came for {self._me}")

    async def ack(self) -> None:
        if self._first == self._read:
            self._run("DELETE FROM message WHERE number = ?", (self._read,))
        else:
            self._run(
                "DELETE FROM message WHERE recipient = ? AND number BETWEEN ? AND ?",
                (self._me, self._first, self._read),
            )

    async def check_empty(self) -> None:
        left = self._run("SELECT count(*) FROM message WHERE recipient = ?", (self._me,)).fetchone()[0]
        if left:
            raise MeasureError(f"{left} rows are left for {self._me}")


class SqliteQueue:
    """One file for all inboxes, in memory as muster's store."""

    name = "SQLite"

    @contextlib.contextmanager
    def place(self, recipients: list[str], senders: list[str]) -> Iterator[Path]:
        with scratch() as directory:
            path = directory / "queue.db"
            # A connection must not live on in forked children: it is closed before there are any.
            with contextlib.closing(connect(path)) as connection:
                connection.executescript(_TABLE)
            yield path

    @contextlib.asynccontextmanager
    async def sender(self, place: Path, me: str) -> AsyncIterator[_Sending]:
        with contextlib.closing(connect(place)) as connection:
            yield _Sending(connection)

    @contextlib.asynccontextmanager
    async def receiver(self, place: Path, me: str) -> AsyncIterator[_Receiving]:
        with contextlib.closing(connect(place)) as connection:
            yield _Receiving(connection, me)

    def server_cpu_s(self) -> float:
        return 0.0
