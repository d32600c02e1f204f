"""Connections to a vendor's API: made when needed, kept while they are good, never used again after a doubt."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

import h11

from muster.errors import ConfigError
from muster.limit.proxy.wire import PeerGoneError, Wire

#: How long making a connection may take, and how long an idle one is kept: shorter than servers keep theirs.
CONNECT_S = 10.0
IDLE_S = 20.0
IDLE_MAX = 64


@dataclass
class Upstream:
    """One origin, such as https://api.anthropic.com, with an optional path in front of every request."""

    url: str
    _idle: list[tuple[float, Wire]] = field(default_factory=list)
    _tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        parts = self._parts = _checked(self.url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.path = parts.path.rstrip("/").encode()
        usual = self.port == (443 if parts.scheme == "https" else 80)
        self.authority = (parts.hostname or "").encode() if usual else f"{parts.hostname}:{self.port}".encode()

    async def connect(self) -> tuple[Wire, bool]:
        """A connection, and whether it was used before (then its end before an answer may only mean that it was old).

        Raises:
            PeerGoneError: None can be made.
        """
        while self._idle:
            since, wire = self._idle.pop()
            if time.monotonic() - since < IDLE_S and wire.is_idle_and_open:
                return wire, True
            wire.abort()
        return await self.connect_anew(), False

    async def connect_anew(self) -> Wire:
        """A connection that nobody used. Raises PeerGoneError."""
        if self._parts.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self._tls)
        except (OSError, TimeoutError) as error:
            why = "no connection in time" if isinstance(error, TimeoutError) else str(error)
            raise PeerGoneError(f"{self.url} cannot be reached: {why}", is_fresh=True) from None
        return Wire(h11.CLIENT, reader, writer)

    def keep(self, wire: Wire) -> None:
        """Take a connection back after a whole exchange."""
        if len(self._idle) < IDLE_MAX and wire.renew() and wire.is_idle_and_open:
            self._idle.append((time.monotonic(), wire))
        else:
            wire.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop()[1].abort()


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 -- raises for a bad one
    except ValueError as error:
        raise ConfigError(f"the upstream is not a URL: {error}", key="upstream") from None
    if "@" in parts.netloc or parts.query or parts.fragment:  # not shown: it may be a secret
        raise ConfigError("the URL of an upstream has no user, password, query or fragment", key="upstream")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"the upstream {url!r:.120} must begin with http:// or https:// and name a host", key="upstream"
        )
    return parts
