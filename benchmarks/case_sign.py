"""Signing and verifying one message of 256 bytes, beside two bare HMACs over as many bytes."""

from __future__ import annotations

import hmac
import os
import time

from benchmarks.case_round_trip import BODY
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from muster.core.codec import TAG_BYTES, Outgoing, decode_frame, encode_frame

_TIMES = 20_000
_KEY, _LANE, _ID = os.urandom(32), os.urandom(16), os.urandom(16)


def _message() -> Outgoing:
    return Outgoing(_ID, b"message", BODY, 0, time.time_ns())


def _frames() -> Figures:
    """Everything that is done to a message: header, tag, verification, parsing."""
    message = _message()
    began = time.perf_counter()
    for seq in range(1, _TIMES + 1):
        frame = encode_frame(message, _LANE, seq, _KEY)
        decoded = decode_frame(frame, _LANE, seq, _KEY, ("alice", "bob"))
    took_s = time.perf_counter() - began
    if decoded.raw != BODY:
        raise MeasureError("the body changed")
    return {"us": took_s / _TIMES * 1e6}


def _digests() -> Figures:
    signed = encode_frame(_message(), _LANE, 1, _KEY)[:-TAG_BYTES]
    began = time.perf_counter()
    for _ in range(_TIMES):
        one = hmac.digest(_KEY, signed, "sha256")
        two = hmac.digest(_KEY, signed, "sha256")
    took_s = time.perf_counter() - began
    if one != two:
        raise MeasureError("two digests of the same bytes differ")
    return {"us": took_s / _TIMES * 1e6}


def cases() -> list[Case]:
    return [
        Case(
            "sign",
            "frame + sign + verify + parse 256 B, beside two hmac.digest",
            [Contender("muster", _frames), Contender("two digests", _digests)],
            [Goal("us", "muster", "two digests", "<=", 2.2)],
            rounds=7,
        )
    ]
