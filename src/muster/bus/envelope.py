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
    Message,
    encode_body,
)
from muster.errors import EchoStormError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery

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
        "cause",
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
    if envelope.get("cause") is not None:
        envelope = because_of(envelope["cause"], envelope)
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
    extras = {tag: envelope[name] for tag, name in _TEXTS if envelope.get(name) is not None}
    message_id = envelope.get("message_id")
    if message_id is not None:
        out.message_id, out.explicit = explicit_id(message_id), True
        extras[EXTRA_MESSAGE_ID] = message_id
    if extras:
        out.extras = encode_extras(extras)
    return out


def because_of(cause: Delivery | Message, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """`envelope` with what `cause` says of a message that it brings about; fields that are set already stay as they are.

    The correlation of a control message is left out: there it would make the message a reply to an ask.
    """
    message = cause if isinstance(cause, Message) else cause.message
    given: dict[str, Any] = {"causation_id": message.id, "hops": message.hops + 1}
    if envelope.get("priority") != "control":
        given["correlation_id"] = message.correlation_id or message.id
    if EXTRA_TRACEPARENT in message.extras:
        given["traceparent"] = message.extras[EXTRA_TRACEPARENT]
    return {**given, **{name: value for name, value in envelope.items() if value is not None}}


def put_caused(bus: Bus, to: str, out: Outgoing, envelope: Mapping[str, Any]) -> int:
    """Store a message that another one brought about, if the bus's guard lets it pass; its number.

    Raises:
        EchoStormError: Nothing was stored, nor counted. Else as the transport's `put`.
    """
    is_reply = out.control and "correlation_id" in envelope  # there is one to an ask
    now_s = time.monotonic()
    try:
        bus.guard.check_hops(out.hops)
        if not is_reply:
            bus.guard.check_rate(to, now_s)
    except EchoStormError:
        bus.stats.hops_refused += 1
        raise
    seq = bus.transport.put(to, out)
    if not is_reply:
        bus.guard.count(to, now_s)
    return seq
