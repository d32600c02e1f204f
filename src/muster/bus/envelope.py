"""A body and its envelope as an `Outgoing`: checked once, before anything is stored."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

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

#: The message that the handler around a call works on: what it sends, it sends because of that one.
around: ContextVar[Message | None] = ContextVar("muster_around", default=None)
#: muster's own requests are nobody's answers.
_OWN = ("agent.", "fleet.", "health.", "limit.", "lock.", "metrics.", "run.", "team.")


class Chain(NamedTuple):
    """A cause that is known by how long its chain is, and perhaps by its id: what an agent's command was started for, or last read."""

    hops: int
    id: str = ""


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
    implied = around.get()
    if not envelope and implied is None:
        return Outgoing(new_id(), b"message", raw, content, created)
    if envelope.get("cause") is not None:
        envelope = because_of(envelope["cause"], envelope)
    elif implied is not None and "cause" not in envelope and not envelope.get("type", "").startswith(_OWN):
        envelope = because_of(implied, envelope)
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


def because_of(cause: Delivery | Message | Chain, envelope: Mapping[str, Any]) -> dict[str, Any]:
    """`envelope` with what `cause` says of a message that it brings about; fields that are set already stay as they are.

    The correlation of a control message is left out: there it would make the message a reply to an ask.
    """
    if isinstance(cause, Chain):
        known: dict[str, Any] = {"hops": cause.hops + 1, **({"causation_id": cause.id} if cause.id else {})}
        return {**known, **{name: value for name, value in envelope.items() if value is not None}}
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
    # An answer to an ask is one for each; and what is only implied may be work, of which there can be much: its chain is bounded.
    is_counted = not (out.control and "correlation_id" in envelope) and (
        "hops" in envelope or ("cause" in envelope and not isinstance(envelope["cause"], Chain))
    )
    now_s = time.monotonic()
    try:
        bus.guard.check_hops(out.hops, bus.hops_max)
        if is_counted:
            bus.guard.check_rate(to, now_s)
    except EchoStormError:
        bus.stats.hops_refused += 1
        bus.on_loop(to, out.hops)
        raise
    seq = bus.transport.put(to, out)
    if is_counted:
        bus.guard.count(to, now_s)
    return seq
