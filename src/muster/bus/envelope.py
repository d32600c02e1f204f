"""A body and its envelope as an `Outgoing`: checked once, before anything is stored."""

from __future__ import annotations

import time

from muster.core import limits
from muster.core.codec import Outgoing, encode_extras
from muster.core.ids import explicit_id, new_id
from muster.core.message import (
    EXTRA_CAUSATION,
    EXTRA_CORRELATION,
    EXTRA_MESSAGE_ID,
    EXTRA_REPLY_TO,
    EXTRA_TRACEPARENT,
    encode_body,
)
from muster.errors import ForbiddenError, UsageError

_types: dict[str, bytes] = {}


def type_bytes(name: str) -> bytes:
    """The type as it stands in a frame. Raises UsageError."""
    raw = _types.get(name)
    if raw is None:
        raw = name.encode()
        if not 0 < len(raw) <= limits.TYPE_BYTES_MAX or not name.isprintable():
            raise UsageError(f"a message type is 1 to {limits.TYPE_BYTES_MAX} printable bytes, not {name!r:.100}")
        if len(_types) < 1024:
            _types[name] = raw
    return raw


def outgoing(
    body: object,
    *,
    type: str = "message",
    priority: str = "normal",
    message_id: str | None = None,
    expires_in_s: float | None = None,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    reply_to: str | None = None,
    traceparent: str | None = None,
    hops: int = 0,
) -> Outgoing:
    """See `Bus.send` for the fields and errors; nothing is stored here."""
    raw, content = encode_body(body)
    created = time.time_ns()
    out = Outgoing(new_id(), type_bytes(type), raw, content, created)
    if priority != "normal":
        if priority != "control":
            raise UsageError(f"priority is 'normal' or 'control', not {priority!r}")
        out.control = True
    if expires_in_s is not None:
        out.expires_ns = created + int(expires_in_s * 1e9)
    if hops:
        if hops > limits.HOPS_MAX:
            raise ForbiddenError(
                f"this chain of messages has {hops} hops, more than {limits.HOPS_MAX}: it looks like an echo storm",
                hops=hops,
            )
        out.hops = hops
    if message_id or correlation_id or causation_id or reply_to or traceparent:
        extras: dict[int, str] = {}
        if message_id is not None:
            out.message_id, out.explicit = explicit_id(message_id), True
            extras[EXTRA_MESSAGE_ID] = message_id
        for tag, text in (
            (EXTRA_CORRELATION, correlation_id), (EXTRA_CAUSATION, causation_id),
            (EXTRA_REPLY_TO, reply_to), (EXTRA_TRACEPARENT, traceparent),
        ):  # fmt: skip
            if text is not None:
                extras[tag] = text
        out.extras = encode_extras(extras)
    return out
