"""One power cut: work, stop, copy the disk, and look at the copy as the machine would after it came back."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import select
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from muster.bus.bus import Bus
from muster.bus.delivery import Delivery
from muster.bus.store import add_agent, create_store
from muster.bus.transports.lanes.deadletters import list_letters
from muster.bus.transports.lanes.transport import LanesTransport
from muster.core.settings import BusSettings
from muster.errors import MusterError
from muster.security.keys import Keyring, load_master

from .crew import PRIORITIES, RECIPIENTS, SENDER, Key, Process, Told, key_of, receive_for_ever, send_for_ever
from .disk import cut_power, make_image, mounted, run, workplace, write_some_pages

WORK_S: Final = (0.05, 0.7)
AFTERWARDS: Final = 5
#: Of the explicit ids of a lane, the newest 256 messages that have one are remembered.
IDS_SENT_AGAIN: Final = 200


@dataclass(frozen=True)
class Plan:
    """`seed` chooses the moment, the messages, and the pages that the kernel writes early."""

    seed: str
    durable: bool = True
    #: A bug to be found: the sender's syncs do nothing.
    is_planted: bool = False


@dataclass
class Verdict:
    """What came back."""

    plan: Plan
    told: Told
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    #: Any other promise that did not hold.
    broken: list[str] = field(default_factory=list)
    #: Why the store could not be used afterwards: holds whatever was lost, because a lane whose numbers are gone begins anew.
    stuck: list[str] = field(default_factory=list)
    delivered: int = 0
    #: Numbers that were given but never accepted, and came back as damage.
    cut_off: int = 0

    @property
    def ok(self) -> bool:
        return not (self.lost or self.torn or self.broken or self.stuck)

    def __str__(self) -> str:
        complaints = [*self.lost[:3], *self.torn[:3], *self.broken[:3], *self.stuck[:3]]
        return (
            f"cut {self.plan.seed!r}: {len(self.told.accepted)} accepted, {len(self.lost)} lost, {len(self.torn)} torn; "
            f"{'; '.join(complaints) or 'all is there'}"
        )


def cut(plan: Plan) -> Verdict:
    """Cut the power once. Call it in a process without threads; it forks."""
    dice = random.Random(f"{plan.seed} cut")
    with workplace() as folder:
        image = make_image(folder)
        with mounted(image, folder / "before") as point:
            told = _work_until_cut(plan, point, dice, image, folder / "after-disk")
        verdict = Verdict(plan, told)
        with mounted(folder / "after-disk", folder / "after") as point:
            try:
                _Survey(verdict, point / "store", dice).look()
            except (MusterError, OSError) as error:
                verdict.stuck.append(f"the store cannot be used any more: {error!r}")
                verdict.lost += [f"{key} with the store" for key in told.accepted if key not in told.acking]
    return verdict


def _work_until_cut(plan: Plan, point: Path, dice: random.Random, image: Path, copy: Path) -> Told:
    store = create_store(point / "store", BusSettings(durable=plan.durable))
    for agent in (SENDER, *RECIPIENTS):
        add_agent(store, agent)
    if not plan.durable:
        run("sync", "-f", str(store))  # that the store itself is still there is not the question
    told = Told()
    with _without_syncs(plan.is_planted):
        sender = Process(functools.partial(send_for_ever, store, plan.seed))
    recipient = Process(functools.partial(receive_for_ever, store, plan.seed))
    processes = (sender, recipient)
    try:
        lines = _Lines(told, processes)
        lines.until(lambda: bool(told.accepted), 20.0)
        ends = time.monotonic() + dice.uniform(*WORK_S)
        while (left := ends - time.monotonic()) > 0:
            lines.until(lambda: False, min(left, dice.uniform(0.01, 0.1)))
            write_some_pages(point, dice)
        for process in processes:
            process.stop()
        for process in processes:
            process.await_stop()
        lines.until(lambda: False, 0.0)
        write_some_pages(point, dice)
        cut_power(image, point, copy)
    finally:
        for process in processes:
            process.kill()
    return told


@contextlib.contextmanager
def _without_syncs(is_planted: bool) -> Iterator[None]:
    """What is forked in here does not sync its segments."""
    real = os.fdatasync
    if is_planted:
        os.fdatasync = lambda fd: None
    try:
        yield
    finally:
        os.fdatasync = real


class _Lines:
    """Reads what the processes tell."""

    def __init__(self, told: Told, processes: tuple[Process, ...]) -> None:
        self._told = told
        self._rest = {process.pipe: b"" for process in processes}

    def until(self, is_enough: Callable[[], bool], timeout_s: float) -> None:
        """Read until `is_enough()`, or for `timeout_s`; then whatever is there already."""
        deadline = time.monotonic() + timeout_s
        while not is_enough():
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(list(self._rest), [], [], left)
            for pipe in ready:
                more = os.read(pipe, 1 << 16)
                assert more, "a process ended by itself; its error stands above"
                *lines, self._rest[pipe] = (self._rest[pipe] + more).split(b"\n")
                for line in lines:
                    self._told.note(line.decode())
            if not ready and not left:
                return


class _Survey:
    """Looks at a store after the cut, and goes on using it."""

    def __init__(self, verdict: Verdict, store: Path, dice: random.Random) -> None:
        self.verdict = verdict
        self.told = verdict.told
        self.store = store
        self.dice = dice
        self._buses: dict[str, Bus] = {}
        #: What came, in order, as (number, first try) of each lane; and under which numbers each message came.
        self.order: dict[tuple[str, str], list[tuple[int, bool]]] = defaultdict(list)
        self.came: dict[Key, set[int]] = defaultdict(set)

    def look(self) -> None:
        try:
            if self.dice.random() < 0.5:
                self._drain()
            self._send_ids_again()
            self._drain()
            self._compare()
            self._go_on()
        finally:
            for bus in self._buses.values():
                bus.transport.close()

    def _bus(self, agent: str) -> Bus:
        if agent not in self._buses:
            keyring = Keyring.from_master(load_master(self.store), agent)
            self._buses[agent] = Bus(LanesTransport(self.store, agent, keyring))
        return self._buses[agent]

    def _drain(self) -> None:
        for agent in RECIPIENTS:
            while (delivery := self._bus(agent).receive_nowait()) is not None:
                self._note(delivery)
                delivery.ack()

    def _note(self, delivery: Delivery) -> None:
        self.verdict.delivered += 1
        key = key_of(delivery)
        if key is None:
            self.verdict.torn.append(f"{delivery} of {delivery.sender}")
            return
        self.order[key[:2]].append((delivery.seq, delivery.attempt == 1))
        self.came[key].add(delivery.seq)

    def _send_ids_again(self) -> None:
        """A caller that did not hear "stored", and one that forgot that it did, send again."""
        for recipient in RECIPIENTS:
            for priority in PRIORITIES:
                lane = [key for key in self.told.trying if key[:2] == (recipient, priority) and key.message_id]
                for key in sorted(lane)[-IDS_SENT_AGAIN:]:
                    again = self._bus(SENDER).post(recipient, key.body, priority=priority, message_id=key.message_id)
                    before = self.told.accepted.get(key, again.seq)
                    if before != again.seq:
                        self.verdict.broken.append(f"{key} was accepted as {before}, and again as {again.seq}")

    def _compare(self) -> None:
        told, verdict = self.told, self.verdict
        letters = {
            (agent, PRIORITIES[bool(letter.get("control"))], letter.get("seq")): str(letter.get("reason"))
            for agent in RECIPIENTS
            for letter in list_letters(f"{self.store}/agents/{agent}/inbox")
        }
        for key, seq in told.accepted.items():
            lettered = (*key[:2], seq) in letters
            if key in told.acking or key in self.came or (lettered and key in told.burying):
                continue
            verdict.lost.append(f"{key}, accepted as {seq}")
        for key, seqs in self.came.items():
            known = {*seqs, *(seen[key] for seen in (told.accepted, told.acking, told.burying) if key in seen)}
            if len(known) > 1:
                verdict.broken.append(f"{key} stands there as {sorted(known)}")
        for lane, came in self.order.items():
            for is_first in (True, False):
                numbers = [seq for seq, first in came if first == is_first]
                if numbers != sorted(set(numbers)):
                    verdict.broken.append(f"{lane}: out of order: {numbers}")
        self._compare_gaps()

    def _compare_gaps(self) -> None:
        told = self.told
        for agent in RECIPIENTS:
            for name, first, last in self._bus(agent).gaps:
                priority = PRIORITIES[name.endswith(".control")]
                gone = [k for k, seq in told.accepted.items() if k[:2] == (agent, priority) and first <= seq <= last]
                self.verdict.torn += [f"{key}, accepted" for key in gone]
                self.verdict.cut_off += last - first + 1 - len(gone)
        for lane in self.order:
            known = {
                seq for seen in (told.accepted, told.acking, told.burying) for k, seq in seen.items() if k[:2] == lane
            }
            known |= {seq for key, seqs in self.came.items() if key[:2] == lane for seq in seqs}
            missing = set(range(1, max(known) + 1)) - known
            if len(missing) > self.verdict.cut_off:
                self.verdict.broken.append(f"{lane}: nobody knows of {sorted(missing)[:9]}")

    def _go_on(self) -> None:
        """The store is used as if nothing had happened."""
        for recipient in RECIPIENTS:
            for priority in PRIORITIES:
                receipts = [
                    self._bus(SENDER).post(recipient, Key(recipient, priority, -n).body, priority=priority)
                    for n in range(1, AFTERWARDS + 1)
                ]
                first = receipts[0].seq
                if [receipt.seq for receipt in receipts] != list(range(first, first + AFTERWARDS)):
                    self.verdict.stuck.append(f"numbers after the cut: {receipts}")
                self._drain()
                if any(receipt.state != "acked" for receipt in receipts):
                    self.verdict.stuck.append(f"sent after the cut: {[receipt.state for receipt in receipts]}")
