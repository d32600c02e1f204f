"""docs/lane-format.md is the specification: its tables are read here and compared with the code and with real files."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import pytest

from muster.bus.bus import Bus
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes import cursor, outlane, segment
from muster.bus.transports.lanes.words import PAGE, VERSION, lane_id_of, page_header, value_of, word
from muster.core import codec, limits
from muster.errors import StoreVersionError
from muster.security.keys import Keyring, load_master, pair_key, receive_root

DOC = (Path(__file__).parents[2] / "docs" / "lane-format.md").read_text()


def table(title: str, *, level: str = "###") -> list[list[str]]:
    """The rows of the first table below a heading."""
    section = re.split(rf"^{level} {title}.*$", DOC, flags=re.MULTILINE)[1]
    rows: list[list[str]] = []
    for line in section.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def test_the_lane_page_of_the_document_is_the_one_of_the_code() -> None:
    offsets = {row[1]: int(row[0]) for row in table("Lane page")}
    assert {name: offsets[name] // 8 for name in ("floor", "released", "durable", "want")} == {
        "floor": outlane.FLOOR, "released": outlane.RELEASED, "durable": outlane.DURABLE, "want": outlane.WANT,
    }  # fmt: skip
    assert (offsets["magic"], offsets["lane_id"], offsets["header_check"]) == (0, 8, 24)


def test_the_cursor_page_of_the_document_is_the_one_of_the_code() -> None:
    offsets = {row[1]: int(row[0]) for row in table("Cursor page")}
    assert {name: offsets[name] // 8 for name in ("taken", "acked_base", "credit", "acked", "attempts")} == {
        "taken": cursor.TAKEN, "acked_base": cursor.ACKED_BASE, "credit": cursor.CREDIT,
        "acked": cursor.ACKED_RING, "attempts": cursor.ATTEMPTS_RING,
    }  # fmt: skip
    # The rings hold a window each, do not overlap and end within the page.
    assert offsets["acked"] + 8 * cursor.WINDOW <= offsets["attempts"]
    assert offsets["attempts"] + 8 * cursor.WINDOW <= PAGE
    assert f"ring of {limits.WINDOW} words" in DOC


def test_the_segment_header_of_the_document_is_the_one_of_the_code() -> None:
    offsets = {row[1]: int(row[0]) for row in table("Segments", level="##")}
    assert offsets == {
        "magic": 0,
        "lane_id": 8,
        "first_seq": 24,
        "segment_bytes": 32,
        "header_check": 40,
        "frames": segment.HEADER_BYTES,
    }


def test_the_frame_fields_of_the_document_add_up_to_the_header_of_the_code() -> None:
    rows = table("Frames", level="##")
    fixed = [int(size) for size, _name in rows if size.isdigit()]
    assert fixed[-1] == codec.TAG_BYTES
    assert sum(fixed[:-1]) == codec.HEADER.size
    names = [name.split()[0].rstrip(",:") for _size, name in rows]
    at = 0
    for size, name in zip(fixed[:-1], names, strict=False):
        if name == "lane_id":
            assert at == codec.LANE_ID_AT
        if name == "seq":
            assert at == codec.SEQ_AT
        at += size


def test_verdict_codes_of_the_document_are_those_of_the_code() -> None:
    listed = dict(re.findall(r"(\d) (done|dead|evicted|expired|damaged|forged)", DOC))
    assert listed == {
        str(cursor.DONE): "done", str(cursor.DEAD): "dead", str(cursor.EVICTED): "evicted",
        str(cursor.EXPIRED): "expired", str(cursor.DAMAGED): "damaged", str(cursor.FORGED): "forged",
    }  # fmt: skip


def test_a_word_survives_only_whole() -> None:
    assert value_of(0) is None, "a word that was never stored is not a value"
    for value in (0, 1, 255, 256, 2**40 + 3, 2**48 - 1):
        assert value_of(word(value)) == value
    old, new = word(255).to_bytes(8, "little"), word(256).to_bytes(8, "little")
    accepted = {
        value_of(int.from_bytes(bytes(old[i] if mask >> i & 1 else new[i] for i in range(8)), "little"))
        for mask in range(256)
    }
    assert accepted == {None, 255, 256}, "no mixture of two values' bytes passes the check"


def test_the_commit_word_of_the_document_is_the_one_of_the_code() -> None:
    lane_id = bytes(range(16))
    check = zlib.crc32(lane_id + struct.pack("<QIB", 7, 300, 1)) & 0xFFFF
    assert segment.commit_word(zlib.crc32(lane_id), 7, 300, segment.DATA) == check << 48 | 1 << 32 | 300


def test_the_pair_key_of_the_document_is_the_one_of_the_code() -> None:
    import hmac

    master = b"m" * 32
    root = hmac.digest(master, b"recv" + b"bob", "sha256")
    assert receive_root(master, "bob") == root
    assert pair_key(root, "alice", 1) == hmac.digest(root, b"pair/1\x05alice\x01\x00", "sha256")


def test_a_page_of_another_version_is_refused_by_name() -> None:
    header = bytearray(page_header(outlane.MAGIC, b"l" * 16))
    assert lane_id_of(bytes(header), outlane.MAGIC) == b"l" * 16
    header[28:32] = (VERSION + 1).to_bytes(4, "little")
    with pytest.raises(StoreVersionError, match=f"version {VERSION + 1}"):
        lane_id_of(bytes(header), outlane.MAGIC)


async def test_a_lane_costs_sixteen_kibibytes_and_every_file_is_private(tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        store = create_store(tmp_path / "fleet")
        for agent in ("alice", "bob"):
            add_agent(store, agent)
        keys = load_master(store)
        alice, bob = (
            await Bus.open(store, "alice", Keyring.from_master(keys, "alice")),
            await Bus.open(store, "bob", Keyring.from_master(keys, "bob")),
        )
        await alice.send("bob", 1)
        delivery = await bob.receive(timeout_s=5)
        assert delivery is not None
        files = [store / "agents/alice/outbox/bob" / name for name in os.listdir(store / "agents/alice/outbox/bob")]
        files.append(store / "agents/bob/inbox/alice.cursor")
        assert sum(path.stat().st_size for path in files) == 16384
        for directory, _names, inside in os.walk(store):
            assert os.stat(directory).st_mode & 0o777 == 0o700, directory
            for name in inside:
                assert os.stat(os.path.join(directory, name)).st_mode & 0o777 == 0o600, name
        await alice.close()
        await bob.close()
    finally:
        os.umask(old_umask)


@pytest.mark.parametrize("key_bytes", [0, 1, 32, 64])
@pytest.mark.parametrize("data_bytes", [0, 1, 55, 64, 300, 5000])
def test_the_tag_is_the_hmac_of_the_standard_library(key_bytes: int, data_bytes: int) -> None:
    import hmac

    key, data = os.urandom(key_bytes), os.urandom(data_bytes)
    assert codec.digest(key, data) == codec.digest(key, data) == hmac.digest(key, data, "sha256")
