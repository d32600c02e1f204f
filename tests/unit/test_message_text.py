"""Texts are encoded by hand until msgspec is loaded: both ways give the same bytes."""

from __future__ import annotations

import msgspec
import pytest

from muster.core import limits, message
from muster.errors import BodyEncodingError, BodyTooLargeError


@pytest.mark.parametrize(
    "text", ["", "a", "ü" * 15, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 65535, "x" * 65536, "\U0001f600"]
)
def test_a_text_by_hand_is_the_text_of_msgspec(text: str) -> None:
    assert message._msgpack_text(text) == msgspec.msgpack.encode(text)


def test_a_text_too_large_or_with_a_lone_surrogate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message, "_msgpack_encode", None)
    with pytest.raises(BodyTooLargeError):
        message.encode_body("x" * (limits.BODY_BYTES_MAX + 1))
    with pytest.raises(BodyEncodingError):
        message.encode_body("\ud800")
