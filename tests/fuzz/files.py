"""Targets that read one file of a store, or of a user, with arbitrary bytes in it."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from muster.agent.status import StatusWriter, read_status
from muster.bus.store import read_spec
from muster.bus.transports.lanes import cursor as cursors
from muster.bus.transports.lanes import outlane, redrive
from muster.bus.transports.lanes.appendlog import AppendLog
from muster.bus.transports.lanes.bell import OwnBell
from muster.bus.transports.lanes.credit import CreditPool
from muster.bus.transports.lanes.deadletters import encode_letter, letters_in, list_letters, message_of, read_letter
from muster.bus.transports.lanes.fsck.cursors import CursorFacts
from muster.bus.transports.lanes.ids import FILE_BYTES, ExplicitIds
from muster.bus.transports.lanes.inspect import frames_of
from muster.bus.transports.lanes.overflow import read_policy
from muster.bus.transports.lanes.segment import DATA, HEADER_BYTES, MAGIC, SEAL, commit_word, segment_name
from muster.bus.transports.lanes.tombstones import SLOTS, Tombstones, list_tombstones
from muster.bus.transports.lanes.words import PAGE, VERSION, page_header, word
from muster.core.codec import CHECKSUM_KEY, digest
from muster.core.settings import DEFAULTS, POLICIES
from muster.core.spec import FleetSpec
from muster.errors import CorruptStoreError, FleetNotRunningError, MusterError, StoreVersionError
from muster.fleet import config
from muster.fleet.results import ResultsFile

from .frames import LANE_ID
from .target import Target, holds


@cache
def scratch() -> Path:
    """One folder of this process, in memory where the machine has such a place."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def folder(*names: str) -> Path:
    path = scratch().joinpath(*names)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def put(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)


def _inbox(name: str) -> str:
    return str(folder(name, "inbox"))


# ---------------------------------------------------------------------- cursors


def _use_cursor(page: bytes) -> None:
    inbox = _inbox("cursor")
    path = f"{inbox}/alice.cursor"
    put(Path(path), page.ljust(PAGE, b"\0")[:PAGE])
    facts = CursorFacts(path)
    peer = cursors.PeerCursor(path, LANE_ID, 0)
    try:
        peer.refresh()
        holds(peer.confirmed_base() in (0, peer.acked_base), "nothing is destroyed on the strength of a moving word")
        holds(all(peer.verdict(seq) is None or seq > 0 for seq in (1, 240, 241)), "a verdict belongs to a number")
    finally:
        peer.close()
    pool = CreditPool(DEFAULTS)
    try:
        cursor = cursors.CursorShelf(inbox, pool).open("alice", LANE_ID)
    except ValueError:  # numbers beyond 48 bits: the inbox sets such a lane aside
        return
    try:
        holds(facts.lane_id != LANE_ID or cursor.taken == facts.taken, "a check sees the numbers that a recipient sees")
        seq = cursor.acked_base + 1
        if seq < 1 << 40:  # numbers beyond it cannot come about
            holds(cursor.can_take(seq), "the window begins behind the base")
            cursor.count_attempt(seq)
            cursor.take(seq)
            cursor.finalise(seq, cursors.DONE)
            holds(cursor.is_finalised(seq), "what was finalised is finalised")
    finally:
        cursor.close()


def cursor_page(data: bytes) -> None:
    """Any bytes."""
    _use_cursor(data)


def cursor_words(data: bytes) -> None:
    """Any numbers, each with the check that makes a reader believe it."""
    values = [int.from_bytes(data[at : at + 6], "little") for at in range(0, len(data), 6)]
    head = page_header(cursors.MAGIC, LANE_ID)
    first = b"".join(word(value).to_bytes(8, "little") for value in values[:3])
    ring = b"".join(word(value).to_bytes(8, "little") for value in values[3 : 3 + cursors.WINDOW])
    _use_cursor((head + first).ljust(8 * cursors.ACKED_RING, b"\0") + ring)


def _six(*values: int) -> bytes:
    return b"".join(value.to_bytes(6, "little") for value in values)


def _cursor_words() -> list[bytes]:
    ring = [seq << 8 | 1 for seq in range(1, 10)]
    return [_six(12, 4, 1000, 0, *ring), _six(5, 5, 1005), _six(2**48 - 1, 2**48 - 1, 2**48 - 1), _six(3, 900, 7)]


# ---------------------------------------------------------------------- rings, letters, words


def ids(data: bytes) -> None:
    directory = str(folder("ids"))
    put(Path(directory) / "ids", data)
    ring = ExplicitIds(directory, LANE_ID)
    try:
        ring.remember(b"n" * 16, 77)
        holds(ring.get(b"n" * 16) == 77, "a new id is remembered")
    finally:
        ring.close()
    again = ExplicitIds(directory, LANE_ID)
    again.close()
    holds(again.get(b"n" * 16) == 77, "also by whoever comes next")


def _ids() -> list[bytes]:
    entry = b"".join(bytes([n] * 16) + word(n).to_bytes(8, "little") + LANE_ID[:8] for n in range(1, 40))
    return [entry, entry.ljust(FILE_BYTES, b"\0"), (entry * 8)[:FILE_BYTES]]


def tombstones(data: bytes) -> None:
    inbox = _inbox("tombstones")
    put(Path(inbox) / "evicted", data)
    holds(len(list_tombstones(inbox)) <= SLOTS, "the ring is bounded")
    ring = Tombstones(inbox)
    try:
        ring.add("alice", 5, bytes(16), 10)
    finally:
        ring.close()
    holds(any((stone.lane, stone.seq) == ("alice", 5) for stone in list_tombstones(inbox)), "an eviction is told")


def _tombstones() -> list[bytes]:
    inbox = _inbox("tombstones")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{inbox}/evicted")
    ring = Tombstones(inbox)
    for seq in (1, 2, 3):
        ring.add("alice.control", seq, bytes([seq] * 16), 100)
    ring.close()
    whole = Path(f"{inbox}/evicted").read_bytes()
    return [whole[:1024], whole]


def overflow(data: bytes) -> None:
    agent = folder("overflow")
    (agent / "inbox").mkdir(mode=0o700, exist_ok=True)
    put(agent / "inbox" / "overflow", data)
    holds(read_policy(str(agent)) in POLICIES, "a policy is one of those that exist")


def letter(data: bytes) -> None:
    """A dead letter is listed whatever it holds; only a whole one becomes a message again."""
    agent = folder("letters")
    inbox = str(folder("letters", "inbox", "dead").parent)
    folder("letters", "inbox", "redrive")
    name = f"alice.{LANE_ID.hex()}.6"
    path = Path(inbox) / "dead" / name
    put(path, data)
    (found,) = letters_in(inbox)
    holds(found.seq == 6 and isinstance(found.id, str), "it has a number and an id")
    list_letters(inbox)
    facts, raw = read_letter(str(path))
    with contextlib.suppress(ValueError):
        message_of(facts or {}, raw)
    os.rename(path, f"{inbox}/redrive/{name}.0")
    source = redrive.RedriveSource(str(agent))
    for control in (True, False):
        while (inbound := source.take(control=control)) is not None:
            source.ack(inbound)
    left = [*os.listdir(f"{inbox}/dead"), *os.listdir(f"{inbox}/redrive")]
    for one in left:
        os.unlink(f"{inbox}/dead/{one}")  # whatever was not delivered went back to the dead
    holds(len(left) <= 1, "it is in one place")


#: What a fact of a letter must not be.
_ODD: tuple[Any, ...] = (None, [], -1, 2**70, "\ud800", {"x": 1})


def _letters() -> list[bytes]:
    facts = {
        "id": "invoice-8", "sender": "alice", "recipient": "bob", "type": "order", "seq": 6, "reason": "no", "attempts": 3, "content": 2,
        "created_ns": 1, "dead_ns": 2, "control": False, "hops": 1, "verified": True, "raw_id": "00" * 16, "extras": {"1": "cause"},
    }  # fmt: skip
    odd: list[dict[str, Any]] = [{**facts, key: value} for key in facts for value in _ODD]
    return [encode_letter(one, b"\x81\xa1n\x01") for one in (facts, *odd)] + [b"[]\nx", b"{}\n", b"{}", b"[" * 70000]


# ---------------------------------------------------------------------- segments


def chain(data: bytes, *, key: bytes = CHECKSUM_KEY) -> bytes:
    """A segment whose words all hold, with frames of any content: a length byte, then so many bytes, again and again."""
    header = MAGIC + LANE_ID + (1).to_bytes(8, "little") + (8192).to_bytes(8, "little")
    segment = bytearray(header + zlib.crc32(header).to_bytes(4, "little") + VERSION.to_bytes(4, "little"))
    segment = segment.ljust(HEADER_BYTES, b"\0")
    at, seq, crc = 0, 1, zlib.crc32(LANE_ID)
    while at < len(data) and len(segment) < 7900 and data[at] != 0xFF:
        record = data[at + 1 : at + 1 + data[at]]
        content = record + digest(key, record)
        segment += commit_word(crc, seq, len(content), DATA).to_bytes(8, "little") + content
        segment += bytes(-len(segment) % 8)
        at, seq = at + 1 + data[at], seq + 1
    if at < len(data) and data[at] == 0xFF:
        segment += commit_word(crc, seq, 0, SEAL).to_bytes(8, "little")
    return bytes(segment.ljust(8192, b"\0")[:8192])


def _replay(segment: bytes) -> None:
    directory = folder("log")
    for old in directory.iterdir():
        old.unlink()
    put(directory / "lane", page_header(outlane.MAGIC, LANE_ID).ljust(PAGE, b"\0"))
    put(directory / segment_name(1), segment)
    put(directory / "reserve", b"")
    for seq, _content in frames_of(str(directory), LANE_ID, 1):
        holds(seq < 2000, "a frame takes at least its word")
    try:
        log = AppendLog(directory)
    except CorruptStoreError:
        return
    try:
        before = list(log.replay())
        holds([seq for seq, _record in before] == list(range(1, len(before) + 1)), "numbers have no gap")
        last = log.append([b"new"])
        if len(before) == last - 1:  # no damaged record ends the replay before it
            holds(list(log.replay())[-1] == (last, b"new"), "what was appended is replayed")
    finally:
        log.close()


def append_log(data: bytes) -> None:
    """Records of any content."""
    _replay(chain(data))


def segment(data: bytes) -> None:
    """Any bytes behind a good header: two of length, then what they announce is overwritten in a good chain."""
    whole = bytearray(chain(b"\x03abc\x40" + b"x" * 64 + b"\x00\x10" + b"y" * 16))
    at = HEADER_BYTES + int.from_bytes(data[:2], "little") % 400
    whole[at : at + len(data) - 2] = data[2:]
    _replay(bytes(whole[:8192]))


# ---------------------------------------------------------------------- bells, status, files of people


def bell(data: bytes) -> None:
    path = folder("bell") / "bell"
    if not path.exists():
        os.mkfifo(path, 0o600)
    own = OwnBell(str(path))
    try:
        os.write(own.fd, data[: 60 << 10]) if data else 0
        records, _lost = own.drain()
        holds(all(len(kind) == 1 and "\n" not in name for kind, name in records), "a record is a kind and a name")
        holds(own.drain() == ((), False), "one drain empties the bell")
    finally:
        own.close()


def status(data: bytes) -> None:
    put(folder("status", "agents", "alice") / "status", data.ljust(PAGE, b"\0")[:PAGE])
    read_status(scratch() / "status", "alice")


def _status() -> list[bytes]:
    path = folder("status", "agents", "alice") / "status"
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    writer = StatusWriter(path)
    writer.begin(pid=7, state=2)
    writer.close()
    return [path.read_bytes()[:200]]


def spec(data: bytes) -> None:
    store = folder("spec")
    put(store / "spec.json", data)
    read_spec(store)


def fleet_file(data: bytes) -> None:
    path = folder("fleet") / "fleet.toml"
    put(path, data)
    found = config.load(path, environ={})
    found.bus_settings()
    found.spec("id")


_FLEET = """
[fleet]
name = "docs"
grace = "5s"
retries = 2
[bus]
durable = true
agents_max = 40
[agents.writer]
count = 3
command = ["claude", "-p"]
overflow = "wait"
env = { KEY = "value" }
timeout = "1h30m"
"""


def results(data: bytes) -> None:
    path = folder("results") / "out.jsonl"
    put(path, data)
    file = ResultsFile(path, resume=True)
    try:
        holds(file.read().torn_bytes <= len(data), "only what is there is cut off")
        holds(file.read().torn_bytes == 0, "a torn line is cut off once")
    finally:
        file.close()


TARGETS = [
    Target("cursor-page", cursor_page, lambda: [page_header(cursors.MAGIC, LANE_ID).ljust(600, b"\0")], mutations=300),
    Target("cursor-words", cursor_words, _cursor_words, mutations=600),
    Target("ids", ids, _ids, (), mutations=300),
    Target("tombstones", tombstones, _tombstones, (), mutations=300),
    Target("overflow", overflow, lambda: [policy.encode() for policy in POLICIES], (), mutations=100),
    Target("letter", letter, _letters, (), mutations=600),
    Target("append-log", append_log, lambda: [b"\x03abc\x40" + b"x" * 64 + b"\x00\xff"], (MusterError,), mutations=300),
    Target(
        "segment", segment, lambda: [b"", b"\x40\0" + b"\0" * 8, b"\0\0" + b"\xff" * 8], (MusterError,), mutations=600
    ),
    Target("bell", bell, lambda: [b"m alice\na bob\nf carol.control\nr redrive\n", b"m \n\n x\n"], (), mutations=600),
    Target("status", status, _status, (), mutations=600),
    Target(
        "spec",
        spec,
        lambda: [msgspec.json.encode(FleetSpec(name="docs", store_id="x", agents=()))],
        (StoreVersionError, FleetNotRunningError),
    ),
    Target("fleet-file", fleet_file, lambda: [_FLEET.encode()], (MusterError,)),
    Target(
        "results",
        results,
        lambda: [b'{"task":1,"input":"a","outcome":"done"}\n{"task":2,"input":["b"],"outcome":"failed"}\n'],
        (MusterError,),
        mutations=800,
    ),
]
