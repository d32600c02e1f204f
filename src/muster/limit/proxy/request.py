"""A client's request, read whole and checked before anything of it goes to an API.

The proxy holds a key and listens where every process of the machine, and every page in a browser, can reach it. So a request must come from
a program (no `Origin`), mean this address (`Host`: DNS rebinding), name an agent by its secret, and be of one meaning: one length, an
origin-form target without dots. What goes on is framed anew; nothing of the client's own framing is passed on (RFC 9112, 11.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import h11

from muster.limit.proxy.accounts import Account
from muster.limit.proxy.upstream import Upstream
from muster.limit.proxy.wire import BODY_S, Headers, PeerGoneError, Wire, end_to_end, header

BODY_BYTES_MAX = 64 << 20
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_LOCAL = re.compile(rb"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_DOTS = re.compile(rb"(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:$|[/\\?#]|%2f|%5c)", re.IGNORECASE)
#: Headers that carry a client's own key.
KEYS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})


@dataclass
class Route:
    """One API. `key`: (header name, value) that replaces the client's own, if the key stays with the proxy."""

    upstream: Upstream
    key: tuple[bytes, bytes] | None = None


@dataclass
class Asked:
    """One request of a client, whole."""

    account: Account
    api: str
    route: Route
    head: h11.Request
    target: bytes
    body: IO[bytes]
    body_bytes: int

    def headers(self) -> Headers:
        """What goes to the API."""
        # Compressed streams cannot be counted on their way; the vendor is asked for plain ones.
        drop = {b"host", b"accept-encoding", b"content-length", b"expect"}
        key = self.route.key
        if key is not None:
            drop |= KEYS | {key[0].lower()}
        headers = [(b"host", self.route.upstream.authority), *end_to_end(list(self.head.headers), frozenset(drop))]
        headers.append((b"accept-encoding", b"identity"))
        if self.body_bytes or self.head.method not in (b"GET", b"HEAD", b"DELETE"):
            headers.append((b"content-length", str(self.body_bytes).encode()))
        return [*headers, key] if key is not None else headers


class RefusedError(Exception):
    """The proxy itself answers. The text never holds a path: a secret is in it."""

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind = status, kind


async def read(
    client: Wire,
    head: h11.Request,
    body: IO[bytes],
    routes: dict[str, Route],
    account_of: Callable[[bytes], Account | None],
) -> Asked:
    """Check the request that begins with `head`, and read its body into `body`.

    Raises:
        RefusedError: It is not passed on. PeerGoneError: It did not come whole, or not in time.
    """
    _check(head)
    secret, _, rest = head.target[1:].partition(b"/")
    name, slash, rest = rest.partition(b"/")
    account = account_of(secret)
    if account is None:
        raise RefusedError(403, "permission_error", "this path belongs to no agent of the fleet")
    api = name.decode("ascii", "replace")
    route = routes.get(api)
    if route is None:
        raise RefusedError(404, "not_found_error", f"there is no API {api[:40]!r} here; there are: {', '.join(routes)}")
    if _DOTS.search(rest.partition(b"?")[0]):
        raise RefusedError(400, "invalid_request_error", "a path must not have dots for segments")
    size = await _read_body(client, body)
    return Asked(account, api, route, head, route.upstream.path + slash + rest or b"/", body, size)


def _check(head: h11.Request) -> None:
    headers = list(head.headers)
    if head.method not in METHODS:
        raise RefusedError(405, "invalid_request_error", "this method is not passed on")
    if not head.target.startswith(b"/"):
        raise RefusedError(
            400, "invalid_request_error", "a target begins with a slash; this is no proxy for other hosts"
        )
    if header(headers, b"origin") is not None:
        raise RefusedError(403, "permission_error", "pages in a browser are not served")
    if _LOCAL.fullmatch(header(headers, b"host") or b"") is None:
        raise RefusedError(403, "permission_error", "the Host header must name this machine's loopback")
    names = [key.lower() for key, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise RefusedError(
            400, "invalid_request_error", "a request has a Content-Length or a Transfer-Encoding, not both"
        )


async def _read_body(client: Wire, body: IO[bytes]) -> int:
    size = 0
    async with client.within(BODY_S, "the request did not come whole in time"):
        while True:
            event = await client.next_event()
            if isinstance(event, h11.EndOfMessage):
                return size
            if not isinstance(event, h11.Data):
                raise PeerGoneError("the client went away while it was asking")
            size += len(event.data)
            if size > BODY_BYTES_MAX:
                raise RefusedError(413, "request_too_large", f"a request has at most {BODY_BYTES_MAX >> 20} MiB")
            body.write(event.data)
