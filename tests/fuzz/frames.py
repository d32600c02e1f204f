"""Targets that decode bytes in memory: frames, bodies, names, settings, command lines."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from muster.bus.transports.lanes.deadletters import letter_name, parse_letter_name
from muster.bus.transports.lanes.layout import lane_name, parse_lane_name
from muster.bus.transports.lanes.redrive import parse_redrive_name
from muster.bus.transports.lanes.segment import parse_header
from muster.bus.transports.lanes.words import lane_id_of, page_header
from muster.cli import fast
from muster.core import protocol
from muster.core.codec import HEADER, LANE_ID_AT, SEQ_AT, Outgoing, decode_frame, digest, encode_extras, encode_frame
from muster.core.message import FrameError, Message, decode_body, decode_extras
from muster.core.names import agent_id, fleet_name, group_name
from muster.core.settings import BusSettings, parse_settings
from muster.errors import BodyEncodingError, ConfigError, InvalidNameError, MusterError, StoreVersionError, UsageError
from muster.fleet.durations import DURATION_S_MAX, format_duration, parse_duration

from .target import Target, holds

LANE_ID = bytes(range(16))
SEQ = 7
KEY = bytes(range(32))
NAMES = ("alice", "bob")


class Order(msgspec.Struct):
    number: int
    lines: list[str] = []
    note: str | None = None


def _frames() -> list[bytes]:
    made = []
    for raw, content in ((b"", 0), (b'{"n": 1}', 1), (msgspec.msgpack.encode({"n": [1, 2.5, None, b"x"]}), 2)):
        out = Outgoing(bytes(range(16)), b"order", raw, content, 1_700_000_000_000_000_000)
        made.append(encode_frame(out, LANE_ID, SEQ, KEY))
        out.extras = encode_extras({1: "cause", 4: "00-1-2-01", 5: "invoice-8"})
        out.control = out.explicit = True
        made.append(encode_frame(out, LANE_ID, SEQ, KEY))
    return made


def _look_at(message: Message) -> None:
    """All that a handler may ask of a message that was let in."""
    for name in (
        "id", "raw_id", "created_ns", "expires_ns", "hops", "control", "explicit", "extras", "correlation_id", "causation_id",
        "traceparent", "content_type", "type", "seq",
    ):  # fmt: skip
        getattr(message, name)
    repr(message)
    for as_type in (Any, Order):
        try:
            message.decode(as_type)
        except BodyEncodingError:
            continue


def frame(data: bytes) -> None:
    message = decode_frame(data, LANE_ID, SEQ, KEY, NAMES)
    _look_at(message)
    holds(message.seq == SEQ, "only the number that was asked for is let in")


def signed_frame(data: bytes) -> None:
    """What a peer that holds the key can make: any bytes, of this lane and number, with a tag that fits."""
    content = bytearray(data)
    if len(content) >= HEADER.size:
        content[0] = 1
        content[LANE_ID_AT:SEQ_AT] = LANE_ID
        content[SEQ_AT : SEQ_AT + 8] = SEQ.to_bytes(8, "little")
    frame(bytes(content) + digest(KEY, bytes(content)))


def extras(data: bytes) -> None:
    found = decode_extras(data)
    try:
        again = encode_extras(found)
    except UsageError:  # longer than what we would send
        return
    holds(decode_extras(again) == found, "extras come back as they went")


BODY_TYPES: tuple[Any, ...] = (Any, int, list[int], dict[str, Any], str, bytes, Order)


def body(data: bytes) -> None:
    content, as_type = (data[0] % 3, data[0] // 3 % len(BODY_TYPES)) if data else (0, 0)
    decode_body(data[1:], content, BODY_TYPES[as_type])


def _bodies() -> list[bytes]:
    values = [{"number": 3, "lines": ["a"], "note": None}, [1, 2], 2**63, 1.5, "text", {"deep": [[[[{}]]]]}]
    made = []
    for value in values:
        for kind in range(len(BODY_TYPES)):
            made += [
                bytes([1 + 3 * kind]) + msgspec.json.encode(value),
                bytes([2 + 3 * kind]) + msgspec.msgpack.encode(value),
            ]
    return [
        *made,
        b"\x01" + b"[" * 3000,
        b"\x02" + b"\x91" * 3000,
        b"\x02\xdf\xff\xff\xff\xff",
        b"\x02\xc6\xff\xff\xff\xff",
    ]


def words(data: bytes) -> None:
    """Bodies of muster's own messages, each type in turn."""
    types = sorted(protocol.TYPES)
    name = types[data[0] % len(types)] if data else types[0]
    decode_body(data[1:], 2, protocol.TYPES[name])


def _words() -> list[bytes]:
    values: list[Any] = [{}, [], ["x", 1, None], {"task": 1, "attempt": 1, "number": 1}]
    return [bytes([at]) + msgspec.msgpack.encode(value) for at in range(len(protocol.TYPES)) for value in values]


def names(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for parse in (agent_id, fleet_name, group_name):
        try:
            found = parse(text)
        except InvalidNameError:
            continue
        holds(not set(found) & set("./\0\n "), "a name is safe in a path")
    try:
        sender, control = parse_lane_name(text)
    except InvalidNameError:
        pass
    else:
        holds(lane_name(sender, control=control) == text, "a lane's name has one reading")
    letter = parse_letter_name(text)
    holds(letter is None or (letter[0] and letter[2] >= 0), "a letter's name has a lane and a number")
    parse_redrive_name(text)


def _names() -> list[bytes]:
    letter = letter_name("alice.control", LANE_ID, 3).encode()
    return [
        b"alice",
        b"alice.control",
        b"a" * 64,
        b"a\n",
        b"-x",
        b"@workers",
        b"..",
        b"\xff\xfe",
        letter,
        letter + b".2",
    ]


def settings(data: bytes) -> None:
    found = parse_settings(data.decode("utf-8", "replace"))
    holds(parse_settings(found.render()).render() == found.render(), "settings are written as they are read")
    holds(found.credit_reserved <= found.inbox_messages_max, "floors fit into the inbox")


def _settings() -> list[bytes]:
    small = BusSettings(durable=1, agents_max=2, inbox_messages_max=4, lane_messages_max=1)
    return [BusSettings().render().encode(), small.render().encode(), b"# nothing\n\nagents_max 9\n"]


def durations(data: bytes) -> None:
    seconds = parse_duration(data.decode("utf-8", "replace"), "option")
    holds(0 <= seconds <= DURATION_S_MAX, "a duration is in its bounds")
    format_duration(seconds)


def command_line(data: bytes) -> None:
    """The short way: understood, or left to click. Nothing is carried out."""
    verb, *rest = data.decode("utf-8", "surrogateescape").split("\0")
    verbs = list(fast.OPTIONS)
    parsed = fast.parse([verbs[len(verb) % len(verbs)], *rest])
    if parsed is not None:
        holds(all(isinstance(value, str) for value in parsed.values.values()), "options are texts")


def _lines() -> list[bytes]:
    return [b"\0bob\0hello\0--as=alice\0--json", b"x\0-n\0003\0--wait\00010s", b"xx\0bob\0--\0-t", b"xxx\0--json"]


def headers(data: bytes) -> None:
    for magic in (b"MUSTLAN1", b"MUSTCUR1"):
        try:
            lane_id_of(data, magic)
        except StoreVersionError:
            continue
    parse_header(data)


def _headers() -> list[bytes]:
    return [
        page_header(b"MUSTLAN1", LANE_ID),
        page_header(b"MUSTCUR1", LANE_ID),
        struct.pack("<8s16sQQ", b"MUSTSEG1", LANE_ID, 1, 8192),
    ]


TARGETS = [
    Target("frame", frame, _frames, (FrameError,)),
    Target("signed-frame", signed_frame, lambda: [made[:-32] for made in _frames()], (FrameError,)),
    Target("extras", extras, lambda: [encode_extras({1: "cause", 5: "invoice-8"})], (FrameError,)),
    Target("body", body, _bodies, (BodyEncodingError,)),
    Target("protocol", words, _words, (BodyEncodingError,)),
    Target("names", names, _names, ()),
    Target("settings", settings, _settings, (ConfigError,)),
    Target("durations", durations, lambda: [b"1h30m", b"250ms", b" 4.5 s", b"9" * 400, b"1e9"], (ConfigError,)),
    Target("command-line", command_line, _lines, (MusterError,)),
    Target("headers", headers, _headers, (StoreVersionError,)),
]
