"""What the lives on one store must have in common: the invariants of the bus, judged by their notes alone.

A complaint begins with the invariant that is broken:

    kept      what was accepted is delivered, or is a dead letter with a reason
    whole     a send that raised or died took effect entirely or not at all, once; nothing comes from nowhere, no bytes are mixed
    order     first deliveries come in the order of sending; a redelivery keeps its number and says so
    once      nothing is finalised twice, nothing finalised is delivered again, the verdict on the store agrees
    healed    after the last life nothing is unread, no file is left over or without the room it is there for, and looking once more
              finds nothing
    unique    no number and no id is used twice
    ended     a life ends by its fault or well
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .life import Note


@dataclass
class _Book:
    """What is known of the messages, by the number that the scenario gave them."""

    complaints: list[str] = field(default_factory=list)
    tried: dict[int, bool] = field(default_factory=dict)  # n -> with an explicit id
    sent: dict[int, Note] = field(default_factory=dict)  # in the order of acceptance
    taken: dict[int, Note] = field(default_factory=dict)  # first deliveries, in their order
    places: dict[tuple[str, int], int] = field(default_factory=dict)  # (lane id, seq) -> n
    ids: dict[str, int] = field(default_factory=dict)
    finishing: dict[int, set[str]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    redriven: set[int] = field(default_factory=set)
    is_healing: bool = False

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def on_try(self, note: Note) -> None:
        self.tried[note["n"]] = note["explicit"]

    def on_sent(self, note: Note) -> None:
        n = note["n"]
        before = self.sent.setdefault(n, note)
        if before["seq"] != note["seq"]:
            self.complain(f"whole: {n} was stored twice, as {before['seq']} and as {note['seq']}")
        self._same_id(n, note["id"])

    def on_redriving(self, note: Note) -> None:
        """From here on it may be a dead letter, or be delivered once more."""
        self.redriven.add(note["n"])
        self.finished.pop(note["n"], None)

    def on_healing(self, _note: Note) -> None:
        self.is_healing = True

    def on_raised(self, note: Note) -> None:
        if self.is_healing:
            self.complain(f"healed: {note['error']} out of {note['doing']} although nothing was in its way")

    def _same_id(self, n: int, id_: str) -> None:
        if self.ids.setdefault(id_, n) != n:
            self.complain(f"unique: messages {self.ids[id_]} and {n} have one id")

    def on_taken(self, note: Note) -> None:
        n, place = note["n"], (note["lane"], note["seq"])
        if n not in self.tried:
            self.complain(f"whole: {n} comes from nowhere")
        if not note["whole"]:
            self.complain(f"whole: the bytes of {n} are mixed")
        if n in self.finished:
            self.complain(f"once: {n} was finished ({self.finished[n]}) and is delivered again")
        if self.places.setdefault(place, n) != n:
            self.complain(f"unique: messages {self.places[place]} and {n} have number {note['seq']} of one lane")
        self._same_id(n, note["id"])
        if n in self.sent and self.sent[n]["id"] != note["id"] and not self.tried[n]:
            self.complain(f"whole: {n} has another id than its receipt")
        first = self.taken.get(n)
        if first is not None:
            if (first["lane"], first["seq"]) != place:
                self.complain(f"whole: there are two copies of {n}: numbers {first['seq']} and {note['seq']}")
            if note["attempt"] < 2 and n not in self.redriven:
                self.complain(f"order: {n} is delivered again and does not say so")
            return
        behind = [other for other, seen in self.taken.items() if seen["lane"] == place[0] and seen["seq"] > place[1]]
        if behind:
            self.complain(f"order: {n} comes behind {behind}")
        self.taken[n] = note

    def on_finishing(self, note: Note) -> None:
        self.finishing.setdefault(note["n"], set()).add(note["how"])

    def on_finished(self, note: Note) -> None:
        n, how = note["n"], note["how"]
        if how == "nack" or note["parked"]:
            return
        if n in self.finished:
            self.complain(f"once: {n} was finished twice: {self.finished[n]}, {how}")
        self.finished[n] = how

    def on_settled(self, note: Note) -> None:
        letters = {letter["n"]: letter for letter in note["letters"]}
        if len(letters) != len(note["letters"]):
            self.complain("once: two dead letters of one message")
        for n, letter in letters.items():
            if n not in self.tried:
                self.complain("whole: there is a dead letter of no message")
            if not letter["reason"]:
                self.complain(f"kept: the dead letter of {n} has no reason")
        for n, receipt in self.sent.items():
            if n not in self.taken and n not in letters and not _is_evicted(receipt["seq"], note):
                self.complain(f"kept: {n} was accepted and is lost")
        for n in self.taken:
            self._judge(n, letters, note)
        order = [n for n in self.taken if n in self.sent and not self.tried[n]]
        if order != [n for n in self.sent if n in order]:
            self.complain(f"order: {list(self.sent)} were sent, {list(self.taken)} came")
        for what in ("unread", "temporary", "hollow", "again", "segments_more"):
            if note[what]:
                self.complain(f"healed: {what}: {note[what]}")

    def _judge(self, n: int, letters: dict[int, Note], settled: Note) -> None:
        """Acked, or dead with a letter: one of the two, by the notes as well as by the store."""
        lane, seq = self.taken[n]["lane"], self.taken[n]["seq"]
        is_known = (
            lane == settled["lane"] and n not in self.redriven
        )  # the lane says `dead` of what was redriven, whatever came of it
        verdict = settled["verdicts"].get(str(seq)) if is_known else None
        ways = self.finishing.get(n, set())
        if n in letters and (self.finished.get(n) == "ack" or verdict == "acked"):
            self.complain(f"once: {n} is acked, and is a dead letter as well")
        if n in letters and not ways & {"nack", "dead"}:
            self.complain(f"once: {n} is a dead letter and nobody gave it up")
        if n not in letters and "ack" not in ways:
            self.complain(f"kept: {n} was taken, never finished, and is no dead letter")
        if n not in letters and verdict == "dead":
            self.complain(f"kept: {n} is dead without a letter")
        if verdict not in (None, "acked", "dead", "finalised"):
            self.complain(f"once: {n} is finished and counts as {verdict}")


def _is_evicted(seq: int, settled: Note) -> bool:
    """Given up for newer messages, as its recipient wished: the verdict says so, and a tombstone stands for it."""
    return settled["verdicts"].get(str(seq)) == "evicted" and seq in settled["tombstones"]


def judge(notes: list[Note]) -> list[str]:
    """The complaints about lives on one store that sent, took and finished messages; the last one must have settled it."""
    book = _Book()
    for note in notes:
        handler = getattr(book, f"on_{note['what']}", None)
        if handler is not None:
            handler(note)
    if not notes or not any(note["what"] == "settled" for note in notes):
        book.complain("ended: the last life did not come to its end")
    return book.complaints


def judge_records(notes: list[Note]) -> list[str]:
    """The same for an append log: what was accepted is replayed whole and in order; what raised or died is there once or not."""
    complaints: list[str] = []
    tried: list[int] = []
    kept: list[int] = []
    dropped = 0
    for note in notes:
        what = note["what"]
        if what == "try":
            tried.append(note["n"])
        elif what == "sent":
            kept.append(note["n"])
        elif what == "dropping":
            dropped = max(dropped, note["n"])
        elif what == "replayed":
            found = note["records"]
            if not note["whole"]:
                complaints.append("whole: a record is not what was written")
            if found != sorted(set(found)):
                complaints.append(f"order: replayed {found}")
            if not set(found) <= set(tried):
                complaints.append(f"whole: {sorted(set(found) - set(tried))} come from nowhere")
            lost = [n for n in kept if n not in found and n > dropped]
            if lost:
                complaints.append(f"kept: {lost} were accepted and are lost")
        elif what == "settled":
            complaints += [f"healed: {what}: {note[what]}" for what in ("temporary", "hollow") if note[what]]
    if not any(note["what"] == "settled" for note in notes):
        complaints.append("ended: the last life did not come to its end")
    return complaints


def untyped(notes: list[Note]) -> set[tuple[str, str]]:
    """(what was being done, the error) of everything raised that is no error of muster's."""
    return {(note["doing"], note["error"]) for note in notes if note["what"] == "raised" and not note["typed"]}
