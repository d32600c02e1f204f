"""The history checker: did the bus keep its promises in everything that a crowd of processes, killed at will, wrote into its journals?

The model is a queue for each lane: what was accepted is finalised exactly once, whole, in the order and under the number and id it was
given. A send or an ack that a death cut short may or may not have taken effect. Linear in the length of the history; lost messages are
split into prefix, middle and suffix of their lane, as Jepsen's checkers of message queues do, because each points to another kind of bug.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from muster.testing.journal import (
    ACKED,
    ACKING,
    BEGUN,
    CLOSING,
    CONTROL,
    DELIVERY,
    IN_HAND,
    KILLED,
    KILLING,
    LETTER,
    NACKING,
    NAMES_FILE,
    RECORD_WORDS,
    REFUSED,
    RELEASED,
    RELEASING,
    SEND,
    STORED,
    TENURE,
    WAITS,
    journals,
    opened_journal,
)

#: Violations of one rule that are kept with their text; more are only counted.
KEPT_PER_RULE: Final = 20
_BUSY_DELIVERY: Final = frozenset({ACKING, NACKING, RELEASING, KILLING})
_ID_BUCKETS: Final = 64


class Violation(NamedTuple):
    """A broken promise: the rule by its short name, the lane as people say it, the message's number on it, and what happened."""

    rule: str
    lane: str
    seq: int
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.lane} #{self.seq}: {self.text}"


@dataclass
class Report:
    """What a history came to. `ok` if no promise was broken."""

    accepted: int = 0
    refused: int = 0
    cut: int = 0  # sends that a death cut short
    cut_stored: int = 0  # of these, how many were stored nevertheless
    deliveries: int = 0
    redeliveries: int = 0
    acked: int = 0
    letters: int = 0
    lanes: int = 0
    processes: int = 0
    #: Processes that ended without closing, by role; and those of them that had a send or a verdict in progress, or waited for room.
    deaths: Counter[str] = field(default_factory=Counter)
    deaths_in_operation: Counter[str] = field(default_factory=Counter)
    deaths_waiting: Counter[str] = field(default_factory=Counter)
    #: How often each rule was broken, and the first violations of each.
    broken: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.broken

    def add(self, rule: str, lane: str, seq: int, text: str) -> None:
        self.broken[rule] += 1
        if self.broken[rule] <= KEPT_PER_RULE:
            self.violations.append(Violation(rule, lane, seq, text))


class _Lane:
    """What both sides wrote about one lane, in order."""

    __slots__ = ("deliveries", "letters", "name", "sends")

    def __init__(self, name: str) -> None:
        self.name = name
        self.sends = array("Q")  # three words: number, seq or 0 if cut short, folded id
        self.deliveries = array(
            "Q"
        )  # four words: seq | attempt << 48 | state << 56, number, folded id, tenure << 1 | closed in order
        self.letters: dict[int, tuple[int, int]] = {}  # seq -> number, folded id


class _Tenure(NamedTuple):
    """The time for which one process held one agent: its records in a journal."""

    opened_ns: int
    path: Path
    agent: int
    first: int
    end: int
    closed: bool


def check_history(directory: Path) -> Report:
    """Read every journal below `directory` and check all rules. The processes must have ended, and the store must have been drained.

    Rules: `lost-prefix`, `lost-middle`, `lost-suffix`, `unfinished` (delivered, but neither finalised nor delivered again), `nowhere`,
    `damaged`, `order`, `gap`, `numbers`, `renumbered`, `attempts`, `finalised-twice`, `twice-in-hand`, `ids`, `letter-lost`.
    """
    names = json.loads((directory / NAMES_FILE).read_text(encoding="ascii"))
    report = Report()
    lanes = _read(directory, names, report)
    ids = [array("Q") for _ in range(_ID_BUCKETS)]
    for lane in lanes.values():
        _LaneCheck(lane, report, ids).run()
    report.lanes = len(lanes)
    for bucket in ids:
        if len(set(bucket)) != len(bucket):
            for folded, times in Counter(bucket).items():
                if times > 1:
                    report.add("ids", "all lanes", 0, f"the id that folds to {folded:016x} was given {times} times")
    return report


def _read(directory: Path, names: list[str], report: Report) -> dict[int, _Lane]:
    tenures: list[_Tenure] = []
    for path in journals(directory):
        with opened_journal(path) as entry:
            report.processes += 1
            heads = entry.words[::RECORD_WORDS].tolist()
            found = _tenures(path, heads, entry.words)
            tenures += found
            if not found or not all(tenure.closed for tenure in found):
                _note_death(entry.role, heads, report)
    sorter = _Sorter(names, report)
    for number, tenure in enumerate(sorted(tenures), start=1):
        with opened_journal(tenure.path) as entry:
            begin, end = tenure.first * RECORD_WORDS, tenure.end * RECORD_WORDS
            words = entry.words[begin:end].tolist()
            sorter.add(words, tenure, number)
    return sorter.lanes


def _tenures(path: Path, heads: list[int], words: memoryview) -> list[_Tenure]:
    """The tenures in one journal; one agent's may follow each other, those of several may overlap."""
    found: list[_Tenure] = []
    open_at: dict[int, tuple[int, int, bool]] = {}  # agent -> (first record, opened_ns, closing)

    def end(agent: int, at: int) -> None:
        first, opened_ns, closed = open_at.pop(agent)
        found.append(_Tenure(opened_ns, path, agent, first, at, closed))

    rare = {head for head in set(heads) if head & 0xFF in (TENURE, CLOSING, LETTER)}
    for at in [at for at, head in enumerate(heads) if head in rare]:
        kind, agent = heads[at] & 0xFF, heads[at] >> 32 & 0xFFFF
        if kind == TENURE:
            if agent in open_at:
                end(agent, at)
            open_at[agent] = (at, words[at * RECORD_WORDS + 2], False)
        elif kind == CLOSING and agent in open_at:
            open_at[agent] = (*open_at[agent][:2], True)
        elif kind == LETTER and agent not in open_at:  # an auditor holds no identity
            open_at[agent] = (at, 1 << 63, True)
    for agent in list(open_at):
        end(agent, len(heads))
    return found


def _note_death(role: str, heads: list[int], report: Report) -> None:
    report.deaths[role] += 1
    kinds = set(heads)
    sends = [head for head in kinds if head & 0xFFFF == SEND | BEGUN << 8]
    if any(not head >> 24 & WAITS for head in sends) or any(
        head & 0xFF == DELIVERY and head >> 8 & 0xFF in _BUSY_DELIVERY for head in kinds
    ):
        report.deaths_in_operation[role] += 1
    elif sends:
        report.deaths_waiting[role] += 1


class _Sorter:
    """Puts tenures' records into the lanes they are about. A lane's key is sender, recipient and class."""

    def __init__(self, names: list[str], report: Report) -> None:
        self._names, self._report = names, report
        self.lanes: dict[int, _Lane] = {}

    def add(self, words: list[int], tenure: _Tenure, number: int) -> None:
        mark = number << 1 | tenure.closed
        lane_of: dict[int, _Lane | None] = {}  # by a record's first word without its state: few differ in one tenure
        refused = 0
        for head, seq, message, folded in zip(words[::4], words[1::4], words[2::4], words[3::4], strict=True):
            about = head & ~0xFFFF00
            try:
                lane = lane_of[about]
            except KeyError:
                lane = lane_of[about] = self._lane_of(head, tenure.agent)
            if lane is None:
                continue
            kind = head & 0xFF
            if kind == SEND:
                state = head & 0xFF00
                if state == REFUSED << 8:
                    refused += 1
                else:  # until the state says "stored", the other words may be written in part
                    lane.sends.extend((message, seq if state == STORED << 8 else 0, folded))
            elif kind == DELIVERY:
                lane.deliveries.extend((seq | (head & 0xFF0000) << 32 | (head & 0xFF00) << 48, message, folded, mark))
            else:
                lane.letters[seq] = (message, folded)
        self._report.refused += refused

    def _lane_of(self, head: int, agent: int) -> _Lane | None:
        kind = head & 0xFF
        if head >> 32 & 0xFFFF != agent or kind not in (SEND, DELIVERY, LETTER):
            return None
        peer, control = head >> 48, bool(head >> 24 & CONTROL)
        sender, recipient = (agent, peer) if kind == SEND else (peer, agent)
        key = sender << 17 | recipient << 1 | control
        if key not in self.lanes:
            names = self._names
            self.lanes[key] = _Lane(f"{names[sender]} -> {names[recipient]}{' (control)' if control else ''}")
        return self.lanes[key]


#: What is known of a message that was delivered: number, folded id, attempt, state and mark of its last delivery, and whether a verdict
#: of "dead" was ever cut short, so that its letter may stand although it was delivered again. Millions of them: plain tuples.
_Known: TypeAlias = tuple[int, int, int, int, int, bool]


class _LaneCheck:
    """All rules on one lane: first what was sent, then what was delivered, then what is missing."""

    def __init__(self, lane: _Lane, report: Report, ids: list[array[int]]) -> None:
        self._lane, self._report, self._ids = lane, report, ids
        self._sent: dict[int, tuple[int, int]] = {}  # seq -> number, folded id
        self._cut: dict[int, int] = {}  # number of a send cut short -> the highest seq stored before it
        self._known: dict[int, _Known] = {}
        self._skipped: set[int] = set()
        self._highest = 0

    def _broken(self, rule: str, seq: int, text: str) -> None:
        self._report.add(rule, self._lane.name, seq, text)

    def run(self) -> None:
        self._check_sends()
        self._check_deliveries()
        for seq, (number, folded) in self._lane.letters.items():
            if seq not in self._known:
                self._check_origin(seq, number, folded)
        self._check_ends()
        for _number, folded in self._sent.values():
            self._ids[folded % _ID_BUCKETS].append(folded)

    def _check_sends(self) -> None:
        sends, sent, last = self._lane.sends, self._sent, 0
        triples = iter(sends)
        for number, seq, folded in zip(triples, triples, triples, strict=True):
            if seq == 0:
                self._cut[number] = last
            elif seq > last:
                sent[seq] = (number, folded)
                last = seq
            elif (
                sent.get(seq, (0, 0))[0] != number
            ):  # the same message sent again under its explicit id keeps its number
                self._broken("numbers", seq, f"given to message {number:x} when numbers up to {last} had been given")
        self._report.accepted += len(sent)
        self._report.cut += len(self._cut)

    def _check_deliveries(self) -> None:
        deliveries, report = self._lane.deliveries, self._report
        report.deliveries += len(deliveries) // 4
        known, sent = self._known, self._sent
        quads = iter(deliveries)
        for first, number, folded, mark in zip(quads, quads, quads, quads, strict=True):
            seq, attempt, state = first & 0xFFFFFFFFFFFF, first >> 48 & 0xFF, first >> 56
            before = known.get(seq)
            maybe_dead = state in (KILLING, NACKING)
            if before is not None:
                report.redeliveries += 1
                self._check_again(seq, before, (number, folded, attempt, state, mark, maybe_dead))
                maybe_dead = maybe_dead or before[5]
            elif seq == self._highest + 1 and sent.get(seq) == (number, folded) and number:
                self._highest = seq  # the common case, short
            else:
                self._check_first(seq, number, folded)
            if attempt < 1:
                self._broken("attempts", seq, "delivered with an attempt below 1")
            known[seq] = (number, folded, attempt, state, mark, maybe_dead)

    def _check_first(self, seq: int, number: int, folded: int) -> None:
        if seq <= self._highest:
            self._skipped.discard(seq)
            self._broken("order", seq, f"delivered for the first time after number {self._highest}")
        else:
            if seq > self._highest + 1:
                self._skipped.update(range(self._highest + 1, seq))
            self._highest = seq
        self._check_origin(seq, number, folded)

    def _check_origin(self, seq: int, number: int, folded: int) -> None:
        """The message under `seq` was sent with this number and id, whole; or its send was cut short and is now known to have stored it."""
        sent = self._sent.get(seq)
        if number == 0:
            self._broken("damaged", seq, "the body is not whole")
        elif sent is None:
            after = self._cut.pop(number, None)
            if after is None:
                self._broken(
                    "nowhere", seq, f"message {number:x} was never sent on this lane, or came before as another number"
                )
                return
            if seq <= after:
                self._broken("numbers", seq, f"taken by a send that began when numbers up to {after} had been given")
            self._report.cut_stored += 1
            self._sent[seq] = (number, folded)
        elif sent[0] != number:
            self._broken(
                "renumbered", seq, f"message {sent[0]:x} was stored under this number, {number:x} was delivered"
            )
        elif sent[1] != folded:
            self._broken("ids", seq, "delivered with another id than its receipt names")

    def _check_again(self, seq: int, before: _Known, now: _Known) -> None:
        number, folded, attempt, state, mark, _ = before
        now_attempt = now[2]
        if now[:2] != (number, folded):
            self._broken("renumbered", seq, f"message {number:x} came back as {now[0]:x}")
        if state in (ACKED, KILLED):
            self._broken(
                "finalised-twice", seq, f"delivered again (attempt {now_attempt}) after its verdict had returned"
            )
        elif state == IN_HAND and mark == now[4]:
            self._broken("twice-in-hand", seq, f"delivered again (attempt {now_attempt}) while it was in hand")
        given_back = state in (RELEASING, RELEASED) or (state == IN_HAND and mark & 1)
        if now_attempt < attempt + (not given_back):
            self._broken("attempts", seq, f"attempt {now_attempt} follows attempt {attempt}")

    def _check_ends(self) -> None:
        letters, report = self._lane.letters, self._report
        lost: list[int] = []
        for seq in sorted(self._skipped - letters.keys() - self._sent.keys()):
            self._broken("gap", seq, "a number that no message has")
        for seq in sorted(self._sent):
            known = self._known.get(seq)
            has_letter = seq in letters
            if known is None:
                if not has_letter:
                    lost.append(seq)
            elif known[3] == ACKED:
                report.acked += 1
                if has_letter and not known[5]:
                    self._broken("finalised-twice", seq, "acked, and a dead letter besides")
            elif known[3] == ACKING:
                report.acked += not has_letter  # cut short, and never delivered again: the verdict stands
            elif known[3] == KILLED and not has_letter:
                self._broken("letter-lost", seq, "finalised as dead, and no letter stands in the inbox")
            elif not has_letter:
                self._broken("unfinished", seq, f"delivered (attempt {known[2]}), not finalised, never delivered again")
        report.letters += len(letters)
        self._split_lost(lost)

    def _split_lost(self, lost: list[int]) -> None:
        """Name the lost ones by where they stood: from the beginning of the lane on, up to its end, or in between."""
        gone = set(lost)
        every = sorted(self._sent)
        prefix = next((at for at, seq in enumerate(every) if seq not in gone), len(every))
        suffix = next((at for at, seq in enumerate(reversed(every)) if seq not in gone), len(every))
        for seq in lost:
            where = (
                "prefix"
                if prefix and seq <= every[prefix - 1]
                else "suffix"
                if suffix and seq >= every[-suffix]
                else "middle"
            )
            self._broken(f"lost-{where}", seq, f"message {self._sent[seq][0]:x} was accepted and never came")
