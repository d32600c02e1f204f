"""`send`, `recv`, `ask` from a command line: as the agent whose command this is, else as a named agent, else as the operator.

A command that an agent started (at whatever depth) speaks through the owner's socket, whose address is in MUSTER_SOCKET; it never holds
a key. Everybody else takes the identity's lock for a moment and uses the fleet's own keys, which only this user can read.
"""

from __future__ import annotations

import os

from muster.errors import (
    ConfigError,
    EchoStormError,
    ForbiddenError,
    IdentityBusyError,
    InboxFullError,
    MusterError,
    OutboxFullError,
    UnknownAgentError,
)

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any, TypeVar

    from muster.agent.client import OwnerClient
    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery
    from muster.core.message import Message
    from muster.security.keys import Keyring

    T = TypeVar("T")

#: Messages that one `recv` takes at most: the recipient's window (`limits.WINDOW`).
RECEIVE_MAX = 240


class Speaker:
    """Who speaks. `socket` is the owner's address, or None: then `store` is opened as `agent`."""

    def __init__(self, agent: str | None, *, socket: str | None = None, store: Path | None = None) -> None:
        self.agent = agent
        self.socket = socket
        self.store = store


def speaker(as_name: str | None, fleet_flag: str | None = None, store_flag: str | None = None) -> Speaker:
    """`--as NAME`, else the agent of MUSTER_SOCKET, else the operator.

    Raises:
        ConfigError, FleetNotRunningError, InvalidNameError, UnsafePermissionsError: As `places.chosen`; and a bad name.
    """
    socket = os.environ.get("MUSTER_SOCKET")
    own = os.environ.get("MUSTER_AGENT")
    other_fleet = bool(store_flag) or fleet_flag not in (None, "", os.environ.get("MUSTER_FLEET"))
    if socket and not other_fleet and as_name in (None, own):
        return Speaker(own, socket=socket)
    if socket and not other_fleet:
        raise ForbiddenError(
            f"this command belongs to the agent {own!r} and cannot speak as {as_name!r}", agent=as_name
        )
    from muster.core.names import OPERATOR, agent_id
    from muster.fleet import places

    fleet = places.chosen(fleet_flag, store_flag)
    return Speaker(agent_id(as_name) if as_name else OPERATOR, store=fleet.store)


def send(who: Speaker, to: str, body: Any, **envelope: Any) -> dict[str, Any]:
    """Store one message (or one per member of a "@group"), and say under which id.

    Args:
        envelope: type, priority, message_id, wait_s as `Bus.send`.

    Raises:
        MusterError: Whatever the bus says; nothing was stored.
    """
    if who.socket is not None:
        with _owner(who.socket) as owner:
            if to.startswith("@"):
                return {"to": to, "receipts": owner.publish(to, body, **envelope)}
            return {"to": to, **owner.send(to, body, **envelope)}

    if not to.startswith("@"):
        wait_s = envelope.get("wait_s")
        try:
            return _post(who, to, body, {name: value for name, value in envelope.items() if name != "wait_s"})
        except (InboxFullError, OutboxFullError) as error:
            if wait_s == 0 or (wait_s is None and error.facts.get("overflow") == "refuse"):
                raise

    async def through(bus: Bus) -> dict[str, Any]:
        if to.startswith("@"):
            receipts = await bus.publish(to, body, **envelope)
            return {"to": to, "receipts": [{"to": r.recipient, "id": r.id, "seq": r.seq} for r in receipts]}
        receipt = await bus.send(to, body, **envelope)
        return {"to": to, "id": receipt.id, "seq": receipt.seq}

    return _on_bus(who, through, consume=False)


def reply(who: Speaker, to: str, body: Any, *, answers: str = "", **envelope: Any) -> dict[str, Any]:
    """Answer the newest message that `who` took of `to`, or the one with the id `answers`; under which id the answer was stored.

    Args:
        envelope: type, message_id, wait_s as `Bus.send`.

    Raises:
        UsageError: No such message was taken. EchoStormError: The chain of answers is too long. Else as `send`; nothing was stored.
    """
    if who.socket is not None:
        with _owner(who.socket) as owner:
            return {"to": to, **owner.reply(to, body, answers=answers, **envelope)}
    import contextlib

    from muster.bus.answering import load
    from muster.bus.store import hops_max, open_store
    from muster.core.guard import EchoGuard

    assert who.store is not None
    most = hops_max(open_store(who.store))
    recipient, given = load(_inbox(who)).find(to, answers).answer(most)
    try:
        EchoGuard().check_hops(given["hops"], most)
    except EchoStormError:

        async def tell(bus: Bus) -> None:
            bus.on_loop(recipient, given["hops"])

        with contextlib.suppress(MusterError):  # telling it is a courtesy: the answer is that it was refused
            _on_bus(who, tell, consume=False)
        raise
    return send(who, recipient, body, **{**given, **envelope})


def ask(who: Speaker, to: str, body: Any, *, type: str, timeout_s: float) -> dict[str, Any]:
    """Send a request and return the reply as a message (sender, type, body …).

    Raises:
        AskTimeoutError: No reply in time; the request was stored and may still be handled.
    """
    if who.socket is not None:
        with _owner(who.socket) as owner:
            return _without_handle(owner.ask(to, body, type=type, timeout_s=timeout_s))

    async def through(bus: Bus) -> dict[str, Any]:
        message = await bus.ask(to, body, type=type, timeout_s=timeout_s)
        return {
            "id": message.id,
            "sender": message.sender,
            "type": message.type,
            "seq": message.seq,
            "body": message.body,
        }

    return _on_bus(who, through, consume=True)


def receive(who: Speaker, count: int, wait_s: float, show: Callable[[dict[str, Any]], None]) -> int:
    """Take up to `count` messages, waiting up to `wait_s` for the first; `show` prints one and flushes.

    A message is acked after it was shown, so whoever is killed in between finds it again. Returns how many were shown.
    """
    count = min(count or RECEIVE_MAX, RECEIVE_MAX)
    if who.socket is not None:
        with _owner(who.socket) as owner:
            messages = owner.receive(count, wait_s=wait_s)
            for message in messages:
                show(_without_handle(message))
            if messages:
                owner.ack(*messages)
            return len(messages)

    from muster.bus import answering

    async def through(bus: Bus) -> int:
        shown = 0
        delivery = await bus.receive(timeout_s=wait_s)
        heard = None
        try:
            while delivery is not None:
                show(_as_message(delivery))
                heard = heard or answering.load(_inbox(who))
                heard.note(delivery.message)
                delivery.ack()
                shown += 1
                delivery = bus.receive_nowait() if shown < count else None
        finally:
            if heard is not None:
                answering.save(_inbox(who), heard)
        return shown

    return _on_bus(who, through, consume=True)


def peek(who: Speaker, count: int, show: Callable[[dict[str, Any]], None]) -> int:
    """Show up to `count` messages (0: all) that wait, without taking any: they wait on, and count no attempt. How many were shown.

    Works while the owner of the inbox lives, as the operator of the fleet sees it: `state` tells what is taken already.

    Raises:
        ForbiddenError: An agent's command asks: it holds no keys, and only its owner reads for it.
        UnknownAgentError: There is no such inbox.
    """
    if who.socket is not None:
        raise ForbiddenError(
            "only the operator looks into inboxes with --peek; an agent's command takes its messages", agent=who.agent
        )
    from itertools import islice

    from muster.bus.store import has_agent, open_store
    from muster.bus.transports.lanes import peek as peeking
    from muster.security.keys import Keyring, load_master

    assert who.store is not None
    assert who.agent is not None
    store = open_store(who.store)
    if not has_agent(store, who.agent):
        raise UnknownAgentError(f"there is no agent {who.agent!r} in {store.name}", agent=who.agent)
    keyring = Keyring.from_master(load_master(store), who.agent)
    shown = 0
    for message, taken in islice(peeking.waiting(store, who.agent, keyring.verify_key), count or None):
        show({**_facts_of(message), "state": "taken" if taken else "stored", "body": message.body})
        shown += 1
    return shown


def _post(who: Speaker, to: str, body: Any, envelope: dict[str, Any]) -> dict[str, Any]:
    """One message without a loop: asyncio would cost more than all the rest of the verb."""
    from muster.bus.envelope import outgoing
    from muster.bus.transports.lanes.transport import LanesTransport
    from muster.core import limits
    from muster.core.ids import show_id

    store, agent, keyring = _identity(who)
    try:
        transport = LanesTransport(store, agent, keyring, consume=False, wait_s=limits.IDENTITY_WAIT_S)
    except IdentityBusyError as error:
        raise _busy(agent, error) from None
    try:
        out = outgoing(body, envelope)
        seq = transport.put(to, out)
        transport.flush()  # a durable store: accepted once the disk has it, and only then is its recipient rung
    finally:
        transport.close()
    return {"to": to, "id": envelope.get("message_id") or show_id(out.message_id), "seq": seq}


def _busy(agent: str, error: IdentityBusyError) -> IdentityBusyError:
    return IdentityBusyError(
        f"{agent!r} is in use by another process; choose another name with --as",
        retry_after_s=error.retry_after_s,
        agent=agent,
    )


def _identity(who: Speaker) -> tuple[Path, str, Keyring]:
    from muster.bus.store import add_agent, has_agent, open_store
    from muster.security.keys import Keyring, load_master

    assert who.store is not None
    assert who.agent is not None
    store, agent = open_store(who.store), who.agent
    if not has_agent(store, agent):
        add_agent(store, agent)
    return store, agent, Keyring.from_master(load_master(store), agent)


def _on_bus(who: Speaker, through: Callable[[Bus], Awaitable[T]], *, consume: bool) -> T:
    import asyncio

    from muster.bus.bus import Bus
    from muster.core import limits

    store, agent, keyring = _identity(who)

    async def live() -> T:
        try:
            bus = await Bus.open(store, agent, keyring, consume=consume, wait_s=limits.IDENTITY_WAIT_S)
        except IdentityBusyError as error:
            raise _busy(agent, error) from None
        async with bus:
            return await through(bus)

    return asyncio.run(live())


def _owner(path: str) -> OwnerClient:
    from muster.agent.client import OwnerClient

    return OwnerClient(path)


def _as_message(delivery: Delivery) -> dict[str, Any]:
    return {**_facts_of(delivery.message), "attempt": delivery.attempt, "body": delivery.body}


def _facts_of(message: Message) -> dict[str, Any]:
    from muster.core.message import EXTRA_REPLY_TO

    facts = {name: getattr(message, name) for name in ("id", "sender", "type", "seq", "created_ns", "hops")}
    return {**facts, "asks": EXTRA_REPLY_TO in message.extras}


def _inbox(who: Speaker) -> Path:
    from pathlib import Path

    from muster.bus.transports.lanes.layout import agent_dir

    assert who.store is not None
    assert who.agent is not None
    return Path(agent_dir(who.store, who.agent)) / "inbox"


def _without_handle(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "handle"}


def parse_body(text: str, *, as_json: bool) -> Any:
    """A body as typed: text, or with `--json-body` any JSON value.

    Raises:
        ConfigError: It is not JSON.
    """
    if not as_json:
        return text
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--json-body: not JSON: {error}", key="json_body") from None
