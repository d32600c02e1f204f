"""Redis Streams as an inbox, in its best form: redis-py with hiredis over a Unix socket, consumer group, entries deleted once acked."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import MeasureError

_GROUP = b"readers"


class RedisInbox:
    """One stream with one consumer group. Without `keep` the stream is made anew."""

    def __init__(self, path: str, name: str, *, keep: bool = False) -> None:
        import redis

        self._client: Any = redis.Redis(unix_socket_path=path, protocol=2)
        self._name = name
        if not keep:
            self._client.delete(name)
            self._client.xgroup_create(name, _GROUP, id="0", mkstream=True)

    def add(self, fields: dict[Any, Any], to: str | None = None) -> None:
        self._client.xadd(to or self._name, fields)

    def read(self, count: int, *, wait_s: float | None = None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Up to `count` new entries, waiting for the first one. Raises MeasureError when none came in time."""
        block_ms = None if wait_s is None else int(wait_s * 1000)
        answer = self._client.xreadgroup(_GROUP, b"reader", {self._name: ">"}, count=count, block=block_ms)
        if not answer:
            raise MeasureError(f"nothing came on {self._name}")
        entries: list[tuple[bytes, dict[bytes, bytes]]] = answer[0][1]
        return entries

    def finish(self, entries: list[bytes]) -> None:
        """Ack and delete, in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        pipe.xack(self._name, _GROUP, *entries)
        pipe.xdel(self._name, *entries)
        acked, deleted = pipe.execute()
        if acked != len(entries) or deleted != len(entries):
            raise MeasureError(f"{len(entries)} entries: {acked} acked, {deleted} deleted")

    def check_empty(self) -> None:
        left = self._client.xlen(self._name)
        if left:
            raise MeasureError(f"{left} entries are left on {self._name}")

    def close(self) -> None:
        self._client.close()
