"""What the crash points stand on: faults strike where they are told to, and the judge of histories finds each kind of broken promise."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from . import ptrace
from .calls import AFTER, BEFORE, FULL, SHORT
from .faults import Fault, live_with
from .history import judge, judge_records
from .life import Life, Note, read_notes

traced = pytest.mark.skipif(bool(ptrace.why_not()), reason=ptrace.why_not())


def write_twice(life: Life) -> None:
    """Two changes and an open between the marks; what each write said is noted."""
    life.mark()
    fd = os.open(life.store / "file", os.O_WRONLY | os.O_CREAT, 0o600)
    for data in (b"four", b"more"):
        try:
            life.note("wrote", count=os.write(fd, data))
        except OSError as error:
            life.note("wrote", error=error.errno)
    life.mark()


@traced
@pytest.mark.parametrize(
    ("fault", "left", "said"),
    [
        (Fault(2, BEFORE), b"", []),
        (Fault(2, AFTER), b"four", []),
        (Fault(3, BEFORE), b"four", [4]),
        (Fault(2, "EIO"), b"more", [-errno.EIO, 4]),
        (Fault(2, "EINTR"), b"fourmore", [4, 4]),
        (Fault(2, SHORT), b"fomore", [2, 4]),
        (Fault(2, FULL), b"", [-errno.ENOSPC, -errno.ENOSPC]),
        (Fault(9, BEFORE), b"fourmore", [4, 4]),
    ],
    ids=str,
)
def test_a_fault_strikes_the_call_it_is_meant_for_and_no_other(
    tmp_path: Path, fault: Fault, left: bytes, said: list[int]
) -> None:
    (tmp_path / "store").mkdir()
    outcome = live_with(fault, write_twice, tmp_path / "store", tmp_path / "notes")
    assert (tmp_path / "store/file").read_bytes() == left
    notes = [note for note in read_notes(tmp_path / "notes") if note["what"] == "wrote"]
    assert [note.get("count") or -note["error"] for note in notes] == said
    assert outcome.ended == (-9 if fault.mode in (BEFORE, AFTER) and fault.at < 9 else 0)
    assert [call.label for call in outcome.calls] == ["open file", "write file", "write file"][: len(outcome.calls)]
    assert outcome.struck == (fault.at < 9)


@traced
def test_calls_elsewhere_and_calls_that_only_read_are_no_changes(tmp_path: Path) -> None:
    (store := tmp_path / "store").mkdir()
    (store / "file").write_bytes(b"x")

    def act(life: Life) -> None:
        life.mark()
        (life.store / "file").read_bytes()
        list(life.store.iterdir())
        (tmp_path / "elsewhere").write_bytes(b"y")
        (tmp_path / "store-of-another").mkdir()
        life.mark()
        (life.store / "behind the mark").write_bytes(b"z")

    assert live_with(None, act, store, tmp_path / "notes").calls == []


# ---------------------------------------------------------------------- the judge


def sent(n: int, seq: int, **more: object) -> list[Note]:
    return [{"what": "try", "n": n, "explicit": False}, {"what": "sent", "n": n, "seq": seq, "id": f"id{n}", **more}]


def taken(n: int, seq: int, **more: object) -> Note:
    return {"what": "taken", "n": n, "seq": seq, "lane": "L", "id": f"id{n}", "attempt": 1, "whole": True, **more}


def finished(n: int, how: str = "ack") -> list[Note]:
    return [{"what": "finishing", "n": n, "how": how}, {"what": "finished", "n": n, "how": how, "parked": False}]


def settled(**more: object) -> Note:
    nothing = dict.fromkeys(("letters", "tombstones", "unread", "again", "temporary", "hollow", "segments_more"), ())
    return {"what": "settled", "lane": "L", "verdicts": {}, **nothing, **more}


GOOD = [*sent(1, 1), *sent(2, 2), taken(1, 1), *finished(1), taken(2, 2), *finished(2)]
LETTER = {"n": 1, "reason": "no use"}


@pytest.mark.parametrize(
    ("notes", "complaint"),
    [
        ([*GOOD, settled(verdicts={"1": "acked", "2": "acked"})], None),
        ([*sent(1, 1), settled()], "kept: 1 was accepted and is lost"),
        ([*sent(1, 1), taken(1, 1), settled()], "kept: 1 was taken, never finished"),
        ([*sent(1, 1), taken(1, 1), *finished(1, "dead"), settled()], "kept: 1 was taken, never finished"),
        ([*sent(1, 1), taken(1, 1), *finished(1, "dead"), settled(letters=[LETTER])], None),
        ([*sent(1, 1), taken(1, 1), *finished(1, "dead"), settled(letters=[{**LETTER, "reason": ""}])], "kept: the dead"),
        ([*GOOD, settled(letters=[LETTER])], "once: 1 is acked, and is a dead letter as well"),
        ([*GOOD, settled(verdicts={"1": "dead"})], "kept: 1 is dead without a letter"),
        ([*GOOD, settled(verdicts={"1": "taken"})], "once: 1 is finished and counts as taken"),
        ([*GOOD, taken(1, 1, attempt=2), settled()], "once: 1 was finished (ack) and is delivered again"),
        ([*GOOD, *finished(2), settled()], "once: 2 was finished twice"),
        ([*sent(1, 1), taken(1, 1), taken(1, 1), *finished(1), settled()], "order: 1 is delivered again and does not say so"),
        ([*sent(1, 1), taken(1, 1), taken(1, 1, attempt=2), *finished(1), settled()], None),
        ([*sent(1, 1), taken(1, 1), taken(1, 2, attempt=2), *finished(1), settled()], "whole: there are two copies of 1"),
        ([taken(1, 1), *finished(1), settled()], "whole: 1 comes from nowhere"),
        ([*sent(1, 1), taken(1, 1, whole=False), *finished(1), settled()], "whole: the bytes of 1 are mixed"),
        ([*sent(1, 1), *sent(2, 2), taken(2, 2), taken(1, 1), *finished(1), *finished(2), settled()], "order: 1 comes behind"),
        ([*sent(1, 1), *sent(2, 1), taken(1, 1), *finished(1), taken(2, 1), *finished(2), settled()], "unique: messages 1 and 2"),
        ([*sent(1, 1), *sent(2, 2, id="id1"), settled()], "unique: messages 1 and 2 have one id"),
        ([*sent(1, 1), settled(verdicts={"1": "evicted"}, tombstones=[1])], None),
        ([*sent(1, 1), settled(verdicts={"1": "evicted"})], "kept: 1 was accepted and is lost"),
        ([*sent(1, 1), settled(letters=[LETTER])], None),
        ([*GOOD, {"what": "redriving", "n": 1}, taken(1, 1), *finished(1), settled(verdicts={"1": "dead"})], None),
        ([*GOOD, settled(temporary=["inbox/tmp-1"])], "healed: temporary"),
        ([*GOOD, settled(unread=1)], "healed: unread"),
        ([*GOOD, {"what": "healing"}, {"what": "raised", "error": "OSError", "doing": "take"}, settled()], "healed: OSError"),
        (GOOD, "ended:"),
    ],
)  # fmt: skip
def test_the_judge_finds_each_broken_promise(notes: list[Note], complaint: str | None) -> None:
    found = judge(json.loads(json.dumps(notes)))
    if complaint is None:
        assert found == []
    else:
        assert [text for text in found if text.startswith(complaint)], f"found {found}"


@pytest.mark.parametrize(
    ("records", "whole", "complaint"),
    [
        ([1, 2], True, None),
        ([1, 2, 3], True, None),
        ([1], True, "kept: [2]"),
        ([2, 1], True, "order:"),
        ([1, 2, 9], True, "whole: [9]"),
        ([1, 2], False, "whole: a record"),
    ],
)
def test_the_judge_of_records_finds_each_broken_promise(records: list[int], whole: bool, complaint: str | None) -> None:
    notes: list[Note] = [{"what": "try", "n": n} for n in (1, 2, 3)] + [{"what": "sent", "n": n} for n in (1, 2)]
    notes += [
        {"what": "replayed", "records": records, "whole": whole},
        {"what": "settled", "temporary": [], "hollow": []},
    ]
    found = judge_records(notes)
    assert len(found) == (complaint is not None)
    assert complaint is None or found[0].startswith(complaint)
