"""A body and its envelope as an `Outgoing`: checked once, before anything is stored."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Mapping

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


_FIELDS = frozenset(
    {
        "type",
        "priority",
        "message_id",
        "expires_in_s",
        "correlation_id",
        "causation_id",
        "reply_to",
        "traceparent",
        "hops",
    }
)
_TEXTS = (
    (EXTRA_CORRELATION, "correlation_id"),
    (EXTRA_CAUSATION, "causation_id"),
    (EXTRA_REPLY_TO, "reply_to"),
    (EXTRA_TRACEPARENT, "traceparent"),
)


def outgoing(body: object, envelope: Mapping[str, Any]) -> Outgoing:
    """`body` with the fields of `envelope` (see `Bus.send`), as it will be framed; nothing is stored here.

    Raises:
        TypeError: An envelope field that does not exist.
        UsageError, BodyEncodingError, BodyTooLargeError: See `Bus.send`.
    """
    raw, content = encode_body(body)
    created = time.time_ns()
    if not envelope:
        return Outgoing(new_id(), b"message", raw, content, created)
    out = Outgoing(new_id(), type_bytes(envelope.get("type", "message")), raw, content, created)
    unknown = envelope.keys() - _FIELDS
    if unknown:
        raise TypeError(f"send() got an unexpected keyword argument {min(unknown)!r}")
    priority = envelope.get("priority", "normal")
    if priority not in ("normal", "control"):
        raise UsageError(f"priority is 'normal' or 'control', not {priority!r}")
    out.control = priority == "control"
    expires_in_s = envelope.get("expires_in_s")
    if expires_in_s is not None:
        out.expires_ns = created + int(expires_in_s * 1e9)
    out.hops = envelope.get("hops", 0)
    if out.hops > limits.HOPS_MAX:
        raise ForbiddenError(
            f"this chain of messages has {out.hops} hops, more than {limits.HOPS_MAX}: it looks like an echo storm",
            hops=out.hops,
        )
    extras = {tag: envelope[name] for tag, name in _TEXTS if envelope.get(name) is not None}
    message_id = envelope.get("message_id")
    if message_id is not None:
        out.message_id, out.explicit = explicit_id(message_id), True
        extras[EXTRA_MESSAGE_ID] = message_id
    if extras:
        out.extras = encode_extras(extras)
    return out
