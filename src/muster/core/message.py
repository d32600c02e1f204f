"""What travels: messages as their reader sees them, and the content types of bodies.

Only the standard library is imported at module level: the command line's fast path sends without msgspec. Bodies are decoded when they
are first asked for, so a router or an auditor never pays for them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from muster.core import limits
from muster.core.ids import show_id
from muster.errors import BodyEncodingError, BodyTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FLAG_CONTROL, FLAG_EXPLICIT_ID = 1, 2
CONTENT_BYTES, CONTENT_JSON, CONTENT_MSGPACK = 0, 1, 2
CONTENT_TYPES = ("application/octet-stream", "application/json", "application/msgpack")

_UNSET: Any = object()
_NO_EXTRAS: Mapping[int, str] = MappingProxyType({})
_EXTRA = struct.Struct("<BH")
#: The header of a message that never stood in a frame, field by field as `codec.HEADER` unpacks it.
NO_HEAD: tuple[Any, ...] = (1, 0, CONTENT_BYTES, 0, 0, 0, 0, 0, bytes(16), 0, bytes(16), 0, 0)


class FrameError(Exception):
    """The bytes are no frame of this lane and number (shape), or the tag does not fit (`forged`)."""

    def __init__(self, reason: str, *, forged: bool = False) -> None:
        super().__init__(reason)
        self.forged = forged


def decode_extras(raw: bytes) -> dict[int, str]:
    """A frame's tag-length-value list; unknown tags are kept, damage raises FrameError."""
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


class Message:
    """One message, verified: `sender` is who holds the pair's key, not what a body claims. Text in a body is data.

    What a frame says beside its body is unpacked once and looked at when asked for: most messages are handled by type and body alone.
    """

    __slots__ = ("_body", "_extras", "_extras_raw", "_head", "content", "raw", "recipient", "sender", "seq", "type")

    def __init__(
        self,
        sender: str,
        recipient: str,
        type_: str,
        raw: bytes,
        head: tuple[Any, ...] = NO_HEAD,
        extras_raw: bytes = b"",
    ) -> None:
        self.sender = sender
        self.recipient = recipient
        self.type = type_
        self.raw = raw
        self.content: int = head[2]
        self.seq: int = head[9]
        self._head = head
        self._extras_raw = extras_raw
        self._extras: Mapping[int, str] | None = None
        self._body: Any = _UNSET

    @property
    def raw_id(self) -> bytes:
        raw: bytes = self._head[10]
        return raw

    @property
    def created_ns(self) -> int:
        created: int = self._head[11]
        return created

    @property
    def expires_ns(self) -> int:
        expires: int = self._head[12]
        return expires

    @property
    def hops(self) -> int:
        hops: int = self._head[3]
        return hops

    @property
    def control(self) -> bool:
        return bool(self._head[1] & FLAG_CONTROL)

    @property
    def explicit(self) -> bool:
        return bool(self._head[1] & FLAG_EXPLICIT_ID)

    @property
    def extras(self) -> Mapping[int, str]:
        """Ids of other messages and the like, by tag. Damage was excluded when the frame was decoded."""
        if self._extras is None:
            self._extras = decode_extras(self._extras_raw) if self._extras_raw else _NO_EXTRAS
        return self._extras

    @property
    def id(self) -> str:
        """The id as text: the caller's own if it chose one, else a UUID version 7."""
        return self.extras.get(EXTRA_MESSAGE_ID) or show_id(self.raw_id)

    @property
    def correlation_id(self) -> str | None:
        return self.extras.get(EXTRA_CORRELATION)

    @property
    def causation_id(self) -> str | None:
        return self.extras.get(EXTRA_CAUSATION)

    @property
    def traceparent(self) -> str | None:
        return self.extras.get(EXTRA_TRACEPARENT)

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.content]

    @property
    def body(self) -> Any:
        """The decoded body. Raises BodyEncodingError if the bytes are not what their content type says."""
        if self._body is _UNSET:
            self._body = self.raw if self.content == CONTENT_BYTES else decode_body(self.raw, self.content)
        return self._body

    @overload
    def decode(self, as_type: type[T]) -> T: ...
    @overload
    def decode(self, as_type: Any) -> Any: ...
    def decode(self, as_type: Any) -> Any:
        """The body as `as_type` (a msgspec Struct, dataclass, TypedDict, …). Raises BodyEncodingError."""
        return decode_body(self.raw, self.content, as_type)

    def __repr__(self) -> str:
        return f"<Message {self.sender}->{self.recipient} {self.type!r} seq={self.seq} {len(self.raw)} bytes>"


EXTRA_CORRELATION, EXTRA_CAUSATION, EXTRA_REPLY_TO, EXTRA_TRACEPARENT, EXTRA_MESSAGE_ID = 1, 2, 3, 4, 5

_msgpack_encode: Any = None
_decoders: dict[tuple[int, Any], Any] = {}


def _encoder() -> Any:
    global _msgpack_encode
    if _msgpack_encode is None:
        import msgspec

        _msgpack_encode = msgspec.msgpack.Encoder().encode
    return _msgpack_encode


def encode_body(body: object) -> tuple[bytes, int]:
    """`body` as bytes and its content type: bytes stay as they are, everything else becomes msgpack.

    Raises:
        BodyEncodingError: The value is of a type that msgpack does not know.
        BodyTooLargeError: It takes more than `limits.BODY_BYTES_MAX` bytes.
    """
    if body.__class__ is bytes:
        raw, content = body, CONTENT_BYTES
    elif isinstance(body, bytearray | memoryview | bytes):
        raw, content = bytes(body), CONTENT_BYTES
    elif body.__class__ is str and _msgpack_encode is None:
        raw, content = (
            _msgpack_text(body),
            CONTENT_MSGPACK,
        )  # a command line's only message: not worth an import of 10 ms
    else:
        try:
            raw, content = (_msgpack_encode or _encoder())(body), CONTENT_MSGPACK
        except (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError) as error:
            raise BodyEncodingError(f"a body of type {type(body).__name__} cannot be encoded: {error}") from None
    if len(raw) > limits.BODY_BYTES_MAX:
        check_body_bytes(len(raw))
    return raw, content


def _msgpack_text(text: str) -> bytes:
    """A text as msgpack (the "str" formats of its specification)."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise BodyEncodingError(f"a body of type str cannot be encoded: {error}") from None
    size = len(raw)
    if size < 32:
        return bytes((0xA0 | size,)) + raw
    if size < 1 << 8:
        return bytes((0xD9, size)) + raw
    if size < 1 << 16:
        return b"\xda" + size.to_bytes(2, "big") + raw
    check_body_bytes(size)
    return b"\xdb" + size.to_bytes(4, "big") + raw


def check_body_bytes(body_bytes: int) -> None:
    """Raises BodyTooLargeError for more than `limits.BODY_BYTES_MAX` bytes."""
    if body_bytes > limits.BODY_BYTES_MAX:
        raise BodyTooLargeError(
            f"the body has {body_bytes:,} bytes, more than the {limits.BODY_BYTES_MAX:,} of one message; send a file's path instead",
            body_bytes=body_bytes,
        )


def decoder_for(content: int, as_type: Any) -> Callable[[bytes], Any]:
    """The decoder of a content type into `as_type`, built once."""
    decoder: Callable[[bytes], Any] | None = _decoders.get((content, as_type))
    if decoder is None:
        import msgspec

        module = msgspec.json if content == CONTENT_JSON else msgspec.msgpack
        decoder = _decoders[content, as_type] = module.Decoder(as_type).decode
    return decoder


def decode_body(raw: bytes, content: int, as_type: Any = Any) -> Any:
    """The value in `raw`. Raises BodyEncodingError; nothing else of the message is affected."""
    if content == CONTENT_BYTES and as_type in (Any, bytes):
        return raw
    decoder = _decoders.get((content, as_type)) or decoder_for(content, as_type)
    try:
        return decoder(raw)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BodyEncodingError(
            f"the body is not valid {CONTENT_TYPES[content]} of the expected shape: {error}"
        ) from None
