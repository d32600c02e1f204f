"""The history checker finds each kind of broken promise in a hand-made history, and nothing in a good one."""

from __future__ import annotations

from pathlib import Path

import pytest

from muster.testing import journal as journals
from muster.testing.history import Report, check_history
from muster.testing.journal import Journal, body_of, create_history, fold, number_of, opened_journal

AGENTS = ("alice", "bob", "carol")


def raw_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class Story:
    """Journals written by hand: each process is one incarnation; `alice` sends to `bob` unless said otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = create_history(directory / "history", AGENTS)
        self.incarnation = 0

    def process(self, agent: str = "alice", role: str = "role") -> Journal:
        self.incarnation += 1
        journal = Journal(self.directory, self.incarnation, role)
        journal.opened(agent)
        return journal

    def send(self, journal: Journal, seq: int, number: int, *, message_id: int = 0, peer: str = "bob") -> None:
        place = journal.send_begun(journal.lane("alice", peer), number)
        journal.send_stored(place, seq, raw_id(message_id or number))

    def take(
        self,
        journal: Journal,
        seq: int,
        number: int,
        *,
        attempt: int = 1,
        state: int = journals.ACKED,
        message_id: int = 0,
    ) -> None:
        place = journal.received(journal.lane("bob", "alice"), seq, attempt, number, raw_id(message_id or number))
        journal.moved(place, state)

    def sent(self, count: int) -> None:
        """Messages 1 … count under their own numbers."""
        journal = self.process("alice")
        for n in range(1, count + 1):
            self.send(journal, n, n)

    def check(self) -> Report:
        return check_history(self.directory)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def rules(report: Report) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for violation in report.violations:
        found.setdefault(violation.rule, []).append(violation.seq)
    return found


# ---------------------------------------------------------------------- good histories


def test_a_history_in_which_everything_was_acked_is_good(story: Story) -> None:
    story.sent(5)
    bob = story.process("bob")
    for n in range(1, 6):
        story.take(bob, n, n)
    report = story.check()
    assert report.ok
    assert (report.accepted, report.acked, report.deliveries, report.lanes, report.processes) == (5, 5, 5, 1, 2)


@pytest.mark.parametrize("stored", [False, True])
def test_a_send_cut_short_may_have_been_stored_or_not(story: Story, stored: bool) -> None:
    alice = story.process("alice")
    story.send(alice, 1, 11)
    alice.send_begun(alice.lane("alice", "bob"), 12)
    again = story.process("alice")
    story.send(again, 3 if stored else 2, 13)
    bob = story.process("bob")
    for seq, number in enumerate((11, 12, 13) if stored else (11, 13), start=1):
        story.take(bob, seq, number)
    report = story.check()
    assert report.ok, report.violations
    assert (report.cut, report.cut_stored) == (1, int(stored))
    assert report.deaths_in_operation == {"role": 1}


def test_a_death_while_the_outcome_was_noted_is_a_send_cut_short(story: Story) -> None:
    alice = story.process("alice")
    place = alice.send_begun(alice.lane("alice", "bob"), 11)
    alice._words[place + 1] = 1
    story.take(story.process("bob"), 1, 11)
    report = story.check()
    assert report.ok, report.violations
    assert (report.cut, report.cut_stored, report.acked) == (1, 1, 1)


@pytest.mark.parametrize("came_again", [False, True])
def test_an_ack_cut_short_may_have_taken_effect_or_not(story: Story, came_again: bool) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1, state=journals.ACKING)
    if came_again:
        story.take(story.process("bob"), 1, 1, attempt=2)
    report = story.check()
    assert report.ok, report.violations
    assert report.acked == 1


def test_what_was_in_hand_at_an_orderly_close_counts_no_attempt(story: Story) -> None:
    story.sent(1)
    first = story.process("bob")
    story.take(first, 1, 1, state=journals.IN_HAND)
    first.closing("bob")
    story.take(story.process("bob"), 1, 1, attempt=1)
    report = story.check()
    assert report.ok, report.violations
    assert report.deaths == {"role": 2}, "alice and the second bob did not close"


def test_a_dead_letter_is_an_end_even_of_a_message_that_nobody_noted(story: Story) -> None:
    """Its readers died before they could write a word, and their successor gave it up."""
    story.sent(3)
    bob = story.process("bob")
    story.take(bob, 1, 1)
    story.take(bob, 3, 3)
    auditor = Journal(story.directory, 99, "auditor")
    auditor.letter(auditor.lane("bob", "alice"), 2, 2, raw_id(2))
    report = story.check()
    assert report.ok, report.violations
    assert report.letters == 1


def test_an_explicit_id_sent_again_keeps_its_number(story: Story) -> None:
    alice = story.process("alice")
    story.send(alice, 1, 11)
    story.send(alice, 2, 12)
    story.send(alice, 1, 11)
    bob = story.process("bob")
    story.take(bob, 1, 11)
    story.take(bob, 2, 12)
    assert story.check().ok


def test_tenures_of_one_agent_are_ordered_by_when_they_began(story: Story) -> None:
    """Journals are opened before the identity is taken, and not always in the same order."""
    late = Journal(story.directory, 1, "late")
    story.incarnation = 1
    early = story.process("alice")
    story.send(early, 1, 11)
    late.opened("alice")
    story.send(late, 2, 12)
    bob = story.process("bob")
    story.take(bob, 1, 11)
    story.take(bob, 2, 12)
    assert story.check().ok


# ---------------------------------------------------------------------- bad histories, one for each rule


@pytest.mark.parametrize(
    ("missing", "rule"),
    [((1, 2), "lost-prefix"), ((3,), "lost-middle"), ((5, 6), "lost-suffix"), ((1, 2, 3, 4, 5, 6), "lost-prefix")],
)
def test_lost_messages_are_named_and_split_by_where_they_stood(
    story: Story, missing: tuple[int, ...], rule: str
) -> None:
    story.sent(6)
    bob = story.process("bob")
    for n in range(1, 7):
        if n not in missing:
            story.take(bob, n, n)
    report = story.check()
    assert rules(report) == {rule: list(missing)}
    assert report.acked == 6 - len(missing)


def test_a_message_delivered_and_left_alone_is_unfinished(story: Story) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1, state=journals.IN_HAND)
    assert rules(story.check()) == {"unfinished": [1]}


def test_a_message_that_nobody_sent_is_from_nowhere(story: Story) -> None:
    story.sent(1)
    bob = story.process("bob")
    story.take(bob, 1, 1)
    story.take(bob, 2, 77)
    assert rules(story.check()) == {"nowhere": [2]}


def test_a_message_of_another_lane_is_from_nowhere(story: Story) -> None:
    alice = story.process("alice")
    story.send(alice, 1, 11, peer="carol")
    story.take(story.process("bob"), 1, 11)
    report = story.check()
    assert {(violation.rule, violation.lane) for violation in report.violations} == {
        ("nowhere", "alice -> bob"),
        ("lost-prefix", "alice -> carol"),
    }


def test_two_copies_of_a_send_cut_short_are_one_too_many(story: Story) -> None:
    alice = story.process("alice")
    alice.send_begun(alice.lane("alice", "bob"), 11)
    bob = story.process("bob")
    story.take(bob, 1, 11)
    story.take(bob, 2, 11)
    assert rules(story.check()) == {"nowhere": [2]}


def test_a_damaged_body_is_found(story: Story) -> None:
    story.sent(1)
    body = bytearray(body_of(1, 64))
    body[40] ^= 1
    story.take(story.process("bob"), 1, number_of(bytes(body)))
    assert rules(story.check()) == {"damaged": [1]}


def test_first_deliveries_out_of_order_are_found(story: Story) -> None:
    story.sent(3)
    bob = story.process("bob")
    for n in (1, 3, 2):
        story.take(bob, n, n)
    assert rules(story.check()) == {"order": [2]}


def test_a_number_that_no_message_has_is_a_gap(story: Story) -> None:
    alice = story.process("alice")
    bob = story.process("bob")
    for seq, number in ((1, 11), (3, 12)):
        story.send(alice, seq, number)
        story.take(bob, seq, number)
    assert rules(story.check()) == {"gap": [2]}


def test_a_number_given_twice_is_found(story: Story) -> None:
    story.sent(2)
    story.send(story.process("alice"), 2, 3)
    bob = story.process("bob")
    story.take(bob, 1, 1)
    story.take(bob, 2, 2)
    assert rules(story.check()) == {"numbers": [2]}


def test_a_send_cut_short_cannot_have_taken_an_older_number(story: Story) -> None:
    alice = story.process("alice")
    story.send(alice, 2, 12)
    alice.send_begun(alice.lane("alice", "bob"), 13)
    bob = story.process("bob")
    story.take(bob, 1, 13)
    story.take(bob, 2, 12)
    assert rules(story.check()) == {"numbers": [1]}


def test_a_message_under_anothers_number_is_found(story: Story) -> None:
    story.sent(2)
    bob = story.process("bob")
    story.take(bob, 1, 2)
    story.take(bob, 2, 2)
    assert rules(story.check()) == {"renumbered": [1]}


def test_a_redelivery_that_changed_is_found(story: Story) -> None:
    story.sent(2)
    story.take(story.process("bob"), 1, 1, state=journals.IN_HAND)
    bob = story.process("bob")
    story.take(bob, 1, 2, attempt=2)
    story.take(bob, 2, 2)
    assert rules(story.check()) == {"renumbered": [1]}


@pytest.mark.parametrize("attempt", [1, 0])
def test_a_redelivery_that_does_not_count_is_found(story: Story, attempt: int) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1, state=journals.IN_HAND)
    story.take(story.process("bob"), 1, 1, attempt=attempt)
    assert set(rules(story.check())) == {"attempts"}


def test_a_delivery_after_the_ack_returned_is_found(story: Story) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1)
    story.take(story.process("bob"), 1, 1, attempt=2)
    assert rules(story.check()) == {"finalised-twice": [1]}


def test_a_dead_letter_of_an_acked_message_is_found(story: Story) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1)
    auditor = Journal(story.directory, 99)
    auditor.letter(auditor.lane("bob", "alice"), 1, 1, raw_id(1))
    assert rules(story.check()) == {"finalised-twice": [1]}


def test_a_message_in_hand_twice_at_once_is_found(story: Story) -> None:
    story.sent(1)
    bob = story.process("bob")
    story.take(bob, 1, 1, state=journals.IN_HAND)
    story.take(bob, 1, 1, attempt=2)
    assert rules(story.check()) == {"twice-in-hand": [1]}


def test_a_verdict_of_dead_without_a_letter_is_found(story: Story) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1, state=journals.KILLED)
    assert rules(story.check()) == {"letter-lost": [1]}


def test_an_id_given_twice_is_found(story: Story) -> None:
    alice, bob = story.process("alice"), story.process("bob")
    for seq in (1, 2):
        story.send(alice, seq, seq, message_id=7)
        story.take(bob, seq, seq, message_id=7)
    assert list(rules(story.check())) == ["ids"]


def test_an_id_that_changes_on_the_way_is_found(story: Story) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1, message_id=9)
    assert rules(story.check()) == {"ids": [1]}


# ---------------------------------------------------------------------- journals


def test_a_journal_cut_at_any_store_reads_as_a_prefix(story: Story) -> None:
    """The word that makes a record visible is stored last: a record whose other words alone stand is not there."""
    journal = story.process("alice")
    story.send(journal, 1, 1)
    journal._words[journal._at + 1] = journal._words[journal._at + 2] = 99
    (path,) = journals.journals(story.directory)
    with opened_journal(path) as entry:
        assert len(entry.words) == 2 * journals.RECORD_WORDS


def test_a_journal_grows_with_what_it_is_told(story: Story) -> None:
    count = 2 * journals.JOURNAL_BYTES_FIRST // (8 * journals.RECORD_WORDS)
    story.sent(count)
    report = story.check()
    assert report.accepted == count
    assert report.broken == {"lost-prefix": count}
    assert len(report.violations) < count, "only the first are kept with their text"


@pytest.mark.parametrize("size", [0, journals.HEADER.size])
def test_a_process_that_died_while_it_made_its_journal_did_nothing(story: Story, size: int) -> None:
    story.sent(1)
    story.take(story.process("bob"), 1, 1)
    path = story.directory / "00000009.journal"
    path.write_bytes(journals.HEADER.pack(journals.MAGIC, 9, b"")[:size])
    report = story.check()
    assert report.ok
    assert report.deaths.total() == 3


def test_a_file_that_is_no_journal_is_refused(story: Story) -> None:
    (story.directory / "00000001.journal").write_bytes(b"x" * 4096)
    with pytest.raises(ValueError, match="no journal"):
        story.check()


def test_waiting_for_room_is_not_counted_as_an_operation(story: Story) -> None:
    alice = story.process("alice", role="sender")
    alice.send_begun(alice.lane("alice", "bob"), 1, waits=True)
    report = story.check()
    assert report.deaths_waiting == {"sender": 1}
    assert not report.deaths_in_operation


def test_bodies_name_their_message_at_every_size() -> None:
    for size in (0, 12, 13, 64, 5000):
        assert number_of(body_of(1 << 40 | 5, size)) == 1 << 40 | 5
        assert len(body_of(1, size)) == max(12, size)
    assert number_of(b"short") == number_of("text") == 0
    assert fold(raw_id(1 << 64 | 1)) == 0, "the halves of an id are one word"
