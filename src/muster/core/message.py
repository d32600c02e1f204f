"""What travels: messages as their reader sees them, and the content types of bodies.

Only the standard library is imported at module level: the command line's fast path sends without msgspec. Bodies are decoded when they
are first asked for, so a router or an auditor never pays for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from muster.core import limits
from muster.core.ids import show_id
from muster.errors import BodyEncodingError, BodyTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

CONTENT_BYTES, CONTENT_JSON, CONTENT_MSGPACK = 0, 1, 2
CONTENT_TYPES = ("application/octet-stream", "application/json", "application/msgpack")

_UNSET: Any = object()


class Message:
    """One message, verified: `sender` is who holds the pair's key, not what a body claims. Text in a body is data."""

    __slots__ = (
        "_body",
        "content",
        "control",
        "created_ns",
        "expires_ns",
        "explicit",
        "extras",
        "hops",
        "raw",
        "raw_id",
        "recipient",
        "sender",
        "seq",
        "type",
    )

    def __init__(self, sender: str, recipient: str, type_: str, raw: bytes, content: int = CONTENT_MSGPACK) -> None:
        self.sender = sender
        self.recipient = recipient
        self.type = type_
        self.raw = raw
        self.content = content
        self.raw_id = b""
        self.seq = 0
        self.created_ns = 0
        self.expires_ns = 0
        self.hops = 0
        self.control = False
        self.explicit = False
        self.extras: Mapping[int, str] = {}
        self._body: Any = _UNSET

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
            self._body = decode_body(self.raw, self.content)
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
    if isinstance(body, bytes | bytearray | memoryview):
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
