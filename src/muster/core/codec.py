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
from muster.core.message import FrameError, Message, decode_extras
from muster.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
TAG_BYTES = 32
#: Key of a lane without a second party (the coordinator's log): the tag is then only a checksum.
CHECKSUM_KEY = bytes(32)

HEADER = struct.Struct("<BBBBHHII16sQ16sQQ")
_EXTRA = struct.Struct("<BH")
_pack = HEADER.pack
_unpack_from = HEADER.unpack_from
_HEADER_BYTES = HEADER.size
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


def encode_extras(extras: Mapping[int, str]) -> bytes:
    """Tag-length-value list. Raises UsageError for a text over 1,024 bytes."""
    parts = []
    for tag, text in extras.items():
        raw = text.encode()
        if len(raw) > 1024:
            raise UsageError(f"an id or trace context of {len(raw)} bytes is longer than 1,024 bytes")
        parts.append(_EXTRA.pack(tag, len(raw)) + raw)
    return b"".join(parts)


class Outgoing:
    """A message ready to be framed: everything but the lane's id and number."""

    expires_ns = 0
    hops = 0
    extras = b""
    control = False
    explicit = False

    def __init__(self, message_id: bytes, type_: bytes, raw: bytes, content: int, created_ns: int) -> None:
        self.message_id = message_id
        self.type = type_
        self.raw = raw
        self.content = content
        self.created_ns = created_ns


def encode_frame(out: Outgoing, lane_id: bytes, seq: int, key: bytes, epoch: int = 1) -> bytes:
    """The bytes of a frame after its commit word, tag included."""
    extras = out.extras
    head = _pack(
        VERSION, out.control | out.explicit << 1, out.content, out.hops, epoch, len(out.type), len(extras), len(out.raw),
        lane_id, seq, out.message_id, out.created_ns, out.expires_ns,
    )  # fmt: skip
    signed = b"".join((head, out.type, extras, out.raw))
    begin_inner, begin_outer = _states.get(key) or _new_states(key)
    inner = begin_inner()
    inner.update(signed)
    outer = begin_outer()
    outer.update(inner.digest())
    return signed + outer.digest()  # type: ignore[no-any-return]


#: Types as they stood in frames; a fleet knows few of them.
_type_texts: dict[bytes, str] = {}


def _type_text(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    if len(_type_texts) < 1024:
        _type_texts[raw] = text
    return text


def decode_frame(content: bytes, lane_id: bytes, seq: int, key: bytes, names: tuple[str, str]) -> Message:
    """The message in `content` (a frame's bytes after its commit word), verified before it is parsed.

    Raises:
        FrameError: The tag does not fit these bytes (`forged`), or the frame is not number `seq` of lane `lane_id`.
    """
    signed = content[:-TAG_BYTES]
    begin_inner, begin_outer = _states.get(key) or _new_states(key)
    inner = begin_inner()
    inner.update(signed)
    outer = begin_outer()
    outer.update(inner.digest())
    if not _same(outer.digest(), content[-TAG_BYTES:]):
        raise FrameError("the tag does not fit", forged=True)
    try:
        head = _unpack_from(signed)
    except struct.error:
        raise FrameError("shorter than a header") from None
    # By position, see HEADER: naming thirteen fields costs more than the check.
    if head[0] != VERSION or head[8] != lane_id or head[9] != seq or head[2] > 2:
        raise FrameError("not this lane, number or version", forged=True)
    at = _HEADER_BYTES + head[5]
    extras_bytes = head[6]
    if at + extras_bytes + head[7] != len(signed):
        raise FrameError("lengths do not add up")
    type_raw = signed[_HEADER_BYTES:at]
    type_text = _type_texts.get(type_raw) or _type_text(type_raw)
    if not extras_bytes:
        return Message(names[0], names[1], type_text, signed[at:], head)
    extras_raw = signed[at : at + extras_bytes]
    message = Message(names[0], names[1], type_text, signed[at + extras_bytes :], head, extras_raw)
    message._extras = decode_extras(extras_raw)  # its damage is the frame's
    return message
