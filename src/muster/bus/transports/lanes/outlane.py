"""One lane as its sender sees it: append, ring, know what became of it, reclaim (rules S, F, B of docs/lane-format.md)."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from muster.bus.transports.lanes import bell, cursor, layout
from muster.bus.transports.lanes.segment import SegmentWriter, list_segments, segment_name
from muster.bus.transports.lanes.words import PAGE, Page, allocate, barrier, lane_id_of, page_header, word
from muster.core import limits
from muster.core.codec import FLAG_EXPLICIT_ID, HEADER, encode_frame
from muster.errors import InboxFullError, StoreFullError
from muster.security.permissions import make_private_dir, open_private

if TYPE_CHECKING:
    from pathlib import Path

    from muster.core.codec import Outgoing

MAGIC: Final = b"MUSTLAN1"
FLOOR, RELEASED, DURABLE, WANT = 4, 5, 6, 7
#: Explicit message ids remembered per lane for deduplication. A coordinator of 750 agents keeps them for every one.
DEDUP_IDS_MAX: Final = 256
_ID_AT: Final = struct.calcsize("<BBBBHHII16sQ")


class OutLane:
    """Made when the first message to a recipient is sent; whoever holds this has the agent's outbox lock."""

    def __init__(self, store: Path, sender: str, recipient: str, *, control: bool, bells: bell.PeerBells) -> None:
        self.recipient = recipient
        self.control = control
        #: What the recipient calls this lane, and what the recipient's ack bells call it here.
        self.name = layout.lane_name(sender, control=control)
        self.key = layout.lane_name(recipient, control=control)
        self._directory = f"{layout.agent_dir(store, sender)}/outbox/{self.key}"
        self._bells = bells
        self._record = bell.record_of(bell.MESSAGES, self.name)
        self._bell_path = f"{layout.agent_dir(store, recipient)}/bell"
        self._cursor_path = f"{layout.agent_dir(store, recipient)}/inbox/{self.name}.cursor"
        self._page: Page | None = None
        self._checked = 0  # rule B's c: the last number for which this process finished the bell check
        self._explicit: OrderedDict[bytes, int] = OrderedDict()
        #: How often the lane's files were removed below us; what was unread then is lost.
        self.times_lost = 0
        self._open()

    def _open(self) -> None:
        lane_id = self._existing_lane_id() or self._begin()
        self._use(lane_id)
        # Segments were removed behind our back: the numbers we would give next were taken already and would never be delivered.
        if self._is_rewound() and self._is_rewound():  # twice: a torn word must not cost a lane
            self._writer.close()
            self.peer.close()
            self._use(self._begin())

    def _is_rewound(self) -> bool:
        return self.peer.refresh() and self.peer.taken > self._writer.next_seq - 1

    def _use(self, lane_id: bytes) -> None:
        self.lane_id = lane_id
        self._page_inode = os.stat(f"{self._directory}/lane", follow_symlinks=False).st_ino
        self._writer = SegmentWriter(self._directory, lane_id)
        self.peer = cursor.PeerCursor(self._cursor_path, lane_id)
        self._explicit.clear()
        for seq, content in self._writer.frames():
            if content[1] & FLAG_EXPLICIT_ID and len(content) > HEADER.size:
                self._remember(bytes(content[_ID_AT : _ID_AT + 16]), seq)

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
        make_private_dir(Path(self._directory))
        temporary = f"{self._directory}/tmp-lane-{os.getpid()}"
        content = page_header(MAGIC, lane_id) + b"".join(word(0).to_bytes(8, "little") for _ in range(4))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.close(allocate(temporary, PAGE, content))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise StoreFullError(
                    "the store has no room for another lane", retry_after_s=limits.STORE_FULL_RETRY_S
                ) from None
            raise
        os.rename(temporary, f"{self._directory}/lane")
        for first in list_segments(self._directory):
            os.unlink(f"{self._directory}/{segment_name(first)}")
        return lane_id

    def _remember(self, message_id: bytes, seq: int) -> None:
        self._explicit[message_id] = seq
        if len(self._explicit) > DEDUP_IDS_MAX:
            self._explicit.popitem(last=False)

    @property
    def last_seq(self) -> int:
        return self._writer.next_seq - 1

    def put(self, out: Outgoing, key: bytes) -> int:
        """Store one message and return its number: the number of the earlier copy if an explicit id was sent before.

        Raises:
            InboxFullError: The recipient granted no more credit; nothing was written.
            StoreFullError: No room for another segment; nothing was written.
        """
        if out.explicit:
            earlier = self._explicit.get(out.message_id)
            if earlier is not None:
                self.ring_if_due(self.last_seq)  # the first call may have died between its commit and its ring
                return earlier
        if self.peer.taken >= self._writer.next_seq - 1 > 0 and not self._still_there():
            self._open_anew()  # somebody removed the outbox; what was unread is gone, what comes now is not
        seq = self._writer.settle()
        if seq > self.peer.credit:
            self._refuse_without_credit(seq)
        content = encode_frame(out, self.lane_id, seq, key)
        try:
            self._writer.commit(content)
        except StoreFullError:
            # The last segment is full and cannot be left without a successor; if all of it is acked, it makes room for one.
            if self.peer.confirmed_base() < seq - 1 or seq == 1:
                raise
            self._writer.drop_all()
            self._writer.commit(content)
        if out.explicit:
            self._remember(out.message_id, seq)
        self.ring_if_due(seq)
        return seq

    def _still_there(self) -> bool:
        """Whether the lane's page is still the one that was opened: asked when the lane is drained, and by the safety net."""
        try:
            return os.stat(f"{self._directory}/lane", follow_symlinks=False).st_ino == self._page_inode
        except FileNotFoundError:
            return False

    def _open_anew(self) -> None:
        self.close()
        self._page = None
        self._checked = 0
        self.times_lost += 1
        self._open()

    def _refuse_without_credit(self, seq: int) -> None:
        self.peer.reopen_if_gone()
        self.peer.refresh()
        self.reclaim()
        if seq > self.peer.credit:
            raise InboxFullError(
                f"{self.recipient} has {seq - 1 - self.peer.acked_base:,} messages of this sender unacked and grants no more",
                retry_after_s=limits.INBOX_FULL_RETRY_S,
                recipient=self.recipient,
            )

    def ring_if_due(self, seq: int) -> bool:
        """Rule B: full barrier, read `taken`, ring iff c <= taken < s; without a cursor of this lane always. True if it rang."""
        barrier()
        known = self.peer.refresh()
        due = not known or self._checked <= self.peer.taken < seq
        if due:
            self._bells.ring(self._bell_path, self._record)
        self._checked = seq
        writer = self._writer
        writer.backlog = seq - self.peer.acked_base
        if writer.sealed and writer.sealed[0][1] <= self.peer.acked_base:
            self.reclaim()
        return due

    def ring_again(self) -> bool:
        """Ring if messages are still untaken (the sender's safety net); False when everything was taken."""
        self.peer.reopen_if_gone()
        known = self.peer.refresh()
        if known and self.peer.taken >= self.last_seq:
            return False
        if not self._still_there():
            self._open_anew()
            return False
        self._bells.ring(self._bell_path, self._record)
        return True

    def reclaim(self) -> None:
        """Unlink sealed segments that are finalised; called on the recipient's bell, at a roll's pace, and when credit ran out."""
        if self._writer.sealed:
            self._writer.reclaim(self.peer.confirmed_base())

    @property
    def holds_sealed(self) -> bool:
        return bool(self._writer.sealed)

    def want(self, seq: int) -> None:
        """Ask for a ring once `seq` is finalised: store `want`, barrier; the caller then looks at the verdict once more."""
        if self._page is None:
            self._page = Page(f"{self._directory}/lane")
        self._page.words[WANT] = word(seq)
        barrier()

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
        if self._page is not None:
            self._page.close()
