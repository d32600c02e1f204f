"""Frames: a message as the bytes that stand in a lane, and back. No I/O, standard library only.

The layout is the table "Frames" of docs/lane-format.md. The tag is HMAC-SHA256 over every byte before it and is verified before
anything is parsed; there is no canonical form, the bytes as stored are what was signed.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from muster.core import limits
from muster.core.message import Message
from muster.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
FLAG_CONTROL, FLAG_EXPLICIT_ID = 1, 2
TAG_BYTES = 32
#: Key of a lane without a second party (the coordinator's log): the tag is then only a checksum.
CHECKSUM_KEY = bytes(32)

HEADER = struct.Struct("<BBBBHHII16sQ16sQQ")
_EXTRA = struct.Struct("<BH")
_pack = HEADER.pack
_unpack_from = HEADER.unpack_from
_same = hmac.compare_digest

LANE_ID_AT = 16
SEQ_AT = 32
CONTENT_BYTES_MAX = HEADER.size + limits.TYPE_BYTES_MAX + 8192 + limits.BODY_BYTES_MAX + TAG_BYTES


#: Keys whose hash states are kept; an agent writes to and reads from at most this many peers at full speed.
_STATES_MAX = 4096
_states: dict[bytes, tuple[Any, Any]] = {}


def _new_states(key: bytes) -> tuple[Any, Any]:
    """The two SHA-256 states that every HMAC under `key` begins with (RFC 2104). Bound `copy` methods: they are all that is used."""
    if len(_states) >= _STATES_MAX:
        _states.clear()
    block = key.ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in block))
    outer = sha256(bytes(byte ^ 0x5C for byte in block))
    states = _states[key] = (inner.copy, outer.copy)
    return states


def digest(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256 of `data` under a key of at most 64 bytes: `hmac.digest`, at about 0.6 of its cost because the key is hashed once."""
    begin_inner, begin_outer = _states.get(key) or _new_states(key)
    inner = begin_inner()
    inner.update(data)
    outer = begin_outer()
    outer.update(inner.digest())
    tag: bytes = outer.digest()
    return tag


class FrameError(Exception):
    """The bytes are no frame of this lane and number (shape), or the tag does not fit (`forged`)."""

    def __init__(self, reason: str, *, forged: bool = False) -> None:
        super().__init__(reason)
        self.forged = forged


def encode_extras(extras: Mapping[int, str]) -> bytes:
    """Tag-length-value list. Raises UsageError for a text over 1,024 bytes."""
    parts = []
    for tag, text in extras.items():
        raw = text.encode()
        if len(raw) > 1024:
            raise UsageError(f"an id or trace context of {len(raw)} bytes is longer than 1,024 bytes")
        parts.append(_EXTRA.pack(tag, len(raw)) + raw)
    return b"".join(parts)


def decode_extras(raw: bytes) -> dict[int, str]:
    """The list back; unknown tags are kept, damage raises FrameError."""
    extras: dict[int, str] = {}
    at = 0
    try:
        while at < len(raw):
            tag, size = _EXTRA.unpack_from(raw, at)
            at += _EXTRA.size
            if at + size > len(raw):
                raise FrameError("extras run over their end")
            extras[tag] = raw[at : at + size].decode()
            at += size
    except (struct.error, UnicodeDecodeError) as error:
        raise FrameError(f"bad extras: {error}") from None
    return extras


class Outgoing:
    """A message ready to be framed: everything but the lane's id and number."""

    __slots__ = (
        "content",
        "control",
        "created_ns",
        "expires_ns",
        "explicit",
        "extras",
        "hops",
        "message_id",
        "raw",
        "type",
    )

    def __init__(self, message_id: bytes, type_: bytes, raw: bytes, content: int, created_ns: int) -> None:
        self.message_id = message_id
        self.type = type_
        self.raw = raw
        self.content = content
        self.created_ns = created_ns
        self.expires_ns = 0
        self.hops = 0
        self.extras = b""
        self.control = False
        self.explicit = False


def encode_frame(out: Outgoing, lane_id: bytes, seq: int, key: bytes, epoch: int = 1) -> bytes:
    """The bytes of a frame after its commit word, tag included."""
    extras = out.extras
    flags = (FLAG_CONTROL if out.control else 0) | (FLAG_EXPLICIT_ID if out.explicit else 0)
    head = _pack(
        VERSION, flags, out.content, out.hops, epoch, len(out.type), len(extras), len(out.raw),
        lane_id, seq, out.message_id, out.created_ns, out.expires_ns,
    )  # fmt: skip
    signed = b"".join((head, out.type, extras, out.raw))
    return signed + digest(key, signed)


def decode_frame(content: bytes, lane_id: bytes, seq: int, key: bytes, names: tuple[str, str]) -> Message:
    """The message in `content` (a frame's bytes after its commit word), verified before it is parsed.

    Raises:
        FrameError: The tag does not fit these bytes (`forged`), or the frame is not number `seq` of lane `lane_id`.
    """
    signed = content[:-TAG_BYTES]
    if not _same(digest(key, signed), content[-TAG_BYTES:]):
        raise FrameError("the tag does not fit", forged=True)
    try:
        (
            version,
            flags,
            kind,
            hops,
            _epoch,
            type_bytes,
            extras_bytes,
            body_bytes,
            lane,
            number,
            message_id,
            created_ns,
            expires_ns,
        ) = _unpack_from(signed)
    except struct.error:
        raise FrameError("shorter than a header") from None
    if version != VERSION or lane != lane_id or number != seq or kind > 2:
        raise FrameError("not this lane, number or version", forged=True)
    at = HEADER.size + type_bytes
    if at + extras_bytes + body_bytes != len(signed):
        raise FrameError("lengths do not add up")
    message = Message(
        names[0], names[1], signed[HEADER.size : at].decode("utf-8", "replace"), signed[at + extras_bytes :], kind
    )
    message.raw_id = message_id
    message.seq = seq
    message.created_ns = created_ns
    message.expires_ns = expires_ns
    message.hops = hops
    message.control = bool(flags & FLAG_CONTROL)
    message.explicit = bool(flags & FLAG_EXPLICIT_ID)
    if extras_bytes:
        message.extras = decode_extras(signed[at : at + extras_bytes])
    return message
