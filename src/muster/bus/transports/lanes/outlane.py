"""One lane as its sender sees it: append, ring, know what became of it, reclaim (rules S, F, B of docs/lane-format.md)."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from muster.bus.transports.lanes import bell, cursor, layout, overflow
from muster.bus.transports.lanes.durable import DurableWriter, Pending, sync_directories
from muster.bus.transports.lanes.ids import ExplicitIds
from muster.bus.transports.lanes.segment import SegmentWriter, list_segments, segment_name
from muster.bus.transports.lanes.words import NO_ROOM, PAGE, Page, allocate, barrier, lane_id_of, page_header, word
from muster.core import limits
from muster.core.codec import HEADER, encode_frame
from muster.core.message import FLAG_EXPLICIT_ID
from muster.core.names import is_coordinator
from muster.core.settings import EVICT_OLDEST
from muster.errors import InboxFullError, OutboxFullError, StoreFullError, UnknownAgentError
from muster.security.permissions import make_private_dir, open_private, sync_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from muster.core.codec import Outgoing
    from muster.core.settings import BusSettings

MAGIC: Final = b"MUSTLAN1"
FLOOR, RELEASED, DURABLE, WANT = 4, 5, 6, 7
_ID_AT: Final = struct.calcsize("<BBBBHHII16sQ")
#: A sender looks this often whether its lane's files are still the ones that it has open.
_LOOK_EVERY_NS: Final = 50_000_000


class Sender(NamedTuple):
    """What all lanes of one identity have in common."""

    store: Path
    agent: str
    bells: bell.PeerBells
    settings: BusSettings
    #: Whether this lane may allocate another segment of so many bytes.
    has_room: Callable[[OutLane, int], bool]


class OutLane:
    """Made when the first message to a recipient is sent; whoever holds this has the agent's outbox lock."""

    def __init__(self, sender: Sender, recipient: str, *, control: bool) -> None:
        self.recipient = recipient
        self.control = control
        self._sender = sender
        #: What the recipient calls this lane, and what the recipient's ack bells call it here.
        self.name = layout.lane_name(sender.agent, control=control)
        self.key = layout.lane_name(recipient, control=control)
        self._outbox = f"{layout.agent_dir(sender.store, sender.agent)}/outbox"
        self._directory = f"{self._outbox}/{self.key}"
        self._recipient_directory = layout.agent_dir(sender.store, recipient)
        self._ring = sender.bells.ringer(f"{self._recipient_directory}/bell", bell.record_of(bell.MESSAGES, self.name))
        self._cursor_path = f"{self._recipient_directory}/inbox/{self.name}.cursor"
        self._durable = sender.settings.durable
        self._page: Page | None = None
        self._checked = 0  # rule B's c: the last number for which this process finished the bell check
        #: Until when the files were seen to be still there; about when the lane was last used.
        self.look_ns = 0
        self._asked_credit = 0  # the credit at which the recipient was last asked for more
        #: How often the lane's files were removed below us; what was unread then is lost.
        self.times_lost = 0
        self._open()

    def _open(self) -> None:
        # Always, not only at the beginning: the recipient's folder may be newer than the lane.
        layout.mark_sender(self._sender.store, self.recipient, self.name)
        lane_id = self._existing_lane_id() or self._begin()
        self._use(lane_id)
        # Segments were removed behind our back: the numbers we would give next were taken already and would never be delivered.
        if self._is_rewound() and self._is_rewound():  # twice: a torn word must not cost a lane
            self.close()
            self._use(self._begin())

    def _is_rewound(self) -> bool:
        return self.peer.refresh() and self.peer.taken > self._writer.next_seq - 1

    def _use(self, lane_id: bytes) -> None:
        self.lane_id = lane_id
        self._page_inode = os.stat(f"{self._directory}/lane", follow_symlinks=False).st_ino
        make = DurableWriter if self._durable else SegmentWriter
        self._writer = make(self._directory, lane_id, lambda size: self._sender.has_room(self, size))
        self.peer = cursor.PeerCursor(self._cursor_path, lane_id, self._sender.settings.credit_floor)
        self.peer.refresh()
        self._ids = ExplicitIds(self._directory, lane_id)
        self._ids.learn(
            (seq, bytes(content[_ID_AT : _ID_AT + 16]))
            # A power cut may keep the file of ids and not what stood in it: every frame tells its own.
            for seq, content in self._writer.frames(newest_only=self._ids.is_kept and not self._durable)
            if len(content) > HEADER.size and content[1] & FLAG_EXPLICIT_ID
        )
        if self._durable:
            self._publish_durable(self._writer.sync())

    def _existing_lane_id(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            fd = open_private(f"{self._directory}/lane", os.O_RDONLY)
            try:
                return lane_id_of(os.pread(fd, 32, 0), MAGIC)
            finally:
                os.close(fd)
        return None

    def _begin(self) -> bytes:
        """A new lane id. The page comes first: a reader that sees segments of another id ignores them until it has seen the page."""
        from pathlib import Path

        lane_id = os.urandom(16)
        if self._durable:
            with contextlib.suppress(FileNotFoundError):  # our name there comes before the lane, on the disk, too
                sync_path(f"{self._recipient_directory}/senders")
        make_private_dir(Path(self._directory))
        temporary = f"{self._directory}/tmp-lane-{os.getpid()}"
        content = page_header(MAGIC, lane_id) + b"".join(word(0).to_bytes(8, "little") for _ in range(4))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.close(allocate(temporary, PAGE, content))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise StoreFullError(
                    "the store has no room for another lane", retry_after_s=limits.STORE_FULL_RETRY_S
                ) from None
            raise
        os.rename(temporary, f"{self._directory}/lane")
        if self._durable:
            sync_directories(f"{self._directory}/lane", self._sender.store)
        for first in list_segments(self._directory):
            os.unlink(f"{self._directory}/{segment_name(first)}")
        return lane_id

    @property
    def last_seq(self) -> int:
        return self._writer.next_seq - 1

    @property
    def held_bytes(self) -> int:
        """Bytes of segments that this lane holds."""
        return self._writer.held_bytes

    def count_pending(self) -> int:
        """Messages stored and not finalised."""
        self.peer.refresh()
        return self._writer.next_seq - 1 - self.peer.acked_base

    @property
    def is_idle(self) -> bool:
        """Whether nothing here waits for the recipient, as of the last look: the lane may be closed and opened again later."""
        return self.peer.acked_base >= self.last_seq and not self._writer.sealed

    def put(self, out: Outgoing, key: bytes) -> int:
        """Store one message and return its number: the number of the earlier copy if an explicit id was sent before.

        In a durable store it counts as stored only once `flush` has returned.

        Raises:
            InboxFullError: The recipient granted no more credit; nothing was written.
            OutboxFullError, StoreFullError: No room for another segment; nothing was written.
        """
        if out.explicit:
            earlier = self._ids.get(out.message_id)
            if earlier is not None:
                self.ring_if_due(self._visible_seq)  # the first call may have died between its commit and its ring
                return earlier
        if out.created_ns >= self.look_ns:
            self._check_recipient()
            if not self._still_there():
                self._open_anew()  # somebody removed the outbox; what was unread is gone, what comes now is not
            self.look_ns = out.created_ns + _LOOK_EVERY_NS
        seq = self._writer.settle()
        if seq > self.peer.credit:
            self._refuse_without_credit(seq)
        content = encode_frame(out, self.lane_id, seq, key)
        try:
            self._writer.commit(content)
        except (StoreFullError, OutboxFullError):
            # The last segment is full and cannot be left without a successor; if all of it is acked, it makes room for one.
            if self.peer.confirmed_base() < seq - 1 or seq == 1:
                raise
            self._sync_acks()
            self._writer.drop_all()
            self._writer.commit(content)
        if out.explicit:
            self._ids.remember(out.message_id, seq)
        if not self._durable:
            self.ring_if_due(seq)
        return seq

    def begin_flush(self) -> Pending | None:
        """Durable stores: begin to write everything stored so far to the disk; None if it is there."""
        assert isinstance(self._writer, DurableWriter)
        return self._writer.begin_sync()

    def end_flush(self, pending: Pending | None) -> None:
        """Let the recipient see what is on the disk now.

        Raises:
            StoreError: The disk refused. What was stored since the last flush was not accepted; it may still be delivered.
        """
        assert isinstance(self._writer, DurableWriter)
        self._publish_durable(self._writer.sync() if pending is None else self._writer.end_sync(pending))
        self.ring_if_due(self._visible_seq)

    @property
    def _visible_seq(self) -> int:
        """The highest number that the recipient may take."""
        return self._writer.durable_seq if isinstance(self._writer, DurableWriter) else self._writer.next_seq - 1

    def _publish_durable(self, seq: int) -> None:
        self._own_page().words[DURABLE] = word(seq)

    def _own_page(self) -> Page:
        if self._page is None:
            self._page = Page(f"{self._directory}/lane")
        return self._page

    def _check_recipient(self) -> None:
        """Raises UnknownAgentError if the recipient was retired since the lane was opened."""
        if not layout.has_agent(self._sender.store, self.recipient):
            raise UnknownAgentError(f"{self.recipient} is retired", agent=self.recipient)

    def _still_there(self) -> bool:
        """Whether the lane's page is still the one that was opened: asked when the lane is drained, and by the safety net."""
        try:
            return os.stat(f"{self._directory}/lane", follow_symlinks=False).st_ino == self._page_inode
        except FileNotFoundError:
            return False

    def _open_anew(self) -> None:
        self.close()
        self._checked = 0
        self.times_lost += 1
        self._open()

    def _refuse_without_credit(self, seq: int) -> None:
        """Return if there is credit for `seq` after all; else ask the recipient for more and raise."""
        peer = self.peer
        peer.reopen_if_gone()
        peer.refresh()
        self.reclaim()
        if seq <= peer.credit:
            return
        self._check_recipient()
        policy = self.policy
        heard = False
        if self._asked_credit != peer.credit:
            self._asked_credit = peer.credit
            path, record = f"{self._recipient_directory}/bell", bell.record_of(bell.FULL, self.name)
            heard = self._sender.bells.ring(path, record)
        if not heard:  # nobody is there, or whoever was asked before may have died since
            overflow.act_for_absent(
                self._recipient_directory, self.name, self.lane_id, self._sender.settings, seq,
                self._describe if policy == EVICT_OLDEST and not is_coordinator(self._sender.agent) else None,
            )  # fmt: skip
            peer.refresh()
            if seq <= peer.credit:
                return
        raise InboxFullError(
            f"{self.recipient} has {seq - 1 - peer.acked_base:,} messages of this sender unacked and grants no more",
            retry_after_s=limits.INBOX_FULL_RETRY_S,
            recipient=self.recipient,
            overflow=policy,
            control=self.control,
        )

    @property
    def policy(self) -> str:
        """What the recipient wants to happen when there is no room (`overflow`)."""
        return overflow.read_policy(self._recipient_directory)

    def _describe(self, first: int, last: int) -> list[tuple[int, bytes, int]]:
        """(number, id, bytes of body) of the messages from `first` to `last` that are still here."""
        return [
            (seq, bytes(content[_ID_AT : _ID_AT + 16]), HEADER.unpack_from(content)[7])
            for seq, content in self._writer.frames()
            if first <= seq <= last
        ]

    def ring_if_due(self, seq: int) -> bool:
        """Rule B: full barrier, read `taken`, ring iff c <= taken < s; without a cursor of this lane always. True if it rang."""
        barrier()
        peer = self.peer
        due = not peer.refresh() or self._checked <= peer.taken < seq
        if due:
            self._ring()
        self._checked = seq
        writer = self._writer
        if writer.sealed and writer.sealed[0][1] <= peer.acked_base:
            self.reclaim()
        return due

    def ring_again(self) -> bool:
        """Ring if messages are still untaken (the sender's safety net); False when everything was taken."""
        self.peer.reopen_if_gone()
        known = self.peer.refresh()
        if known and self.peer.taken >= self._visible_seq:
            return False
        if not self._still_there():
            self._open_anew()
            return False
        self._ring()
        return True

    def reclaim(self) -> None:
        """Unlink sealed segments that are finalised; called on the recipient's bell, at a roll's pace, and when credit ran out."""
        if self._writer.sealed:
            base = self.peer.confirmed_base()
            if self._writer.sealed[0][1] <= base:
                self._sync_acks()
            self._writer.reclaim(base)

    def _sync_acks(self) -> None:
        """Rule D: what is unlinked must never be needed again, so the acks that say so reach the disk first."""
        if self._durable:
            self._ids.sync()
            self.peer.sync()

    @property
    def holds_sealed(self) -> bool:
        return bool(self._writer.sealed)

    def want(self, seq: int) -> None:
        """Ask for a ring once `seq` is finalised: store `want`, barrier; the caller then looks at the verdict once more."""
        self._own_page().words[WANT] = word(seq)
        barrier()

    def number_for_room(self) -> int:
        """The number whose verdict brings new credit: what a sender that waits for room asks to be rung for.

        The very next one: a recipient that takes a minute for each message must not keep its sender waiting for a part of the window.
        """
        self.peer.refresh()
        return self.peer.acked_base + 1

    def state(self, seq: int) -> str:
        """What became of `seq`: stored, taken, acked, dead, expired, …; `finalised` when the verdict is no longer known."""
        self.peer.refresh()
        verdict = self.peer.verdict(seq)
        if verdict is None:
            return "taken" if seq <= self.peer.taken else "stored"
        return cursor.VERDICTS.get(verdict, "finalised")

    def close(self) -> None:
        self._writer.close()
        self.peer.close()
        self._ids.close()
        if self._page is not None:
            self._page.close()
            self._page = None
