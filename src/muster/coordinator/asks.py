"""What may be asked of the coordinator and changes something: judged by pure functions, answered once the change is in the log.

Each part brings a table of its own: struct of the ask -> `Rule`; `intake.RULES` lists the tables. Its `judge` sees the state as it is now
and names the facts that follow; they are applied and logged with the turn, then `reply` looks at the state and says what became of the
ask, and only then is the ask acked. So an ask that is delivered again after a crash is judged again: facts must change nothing the second
time, and an ask for what already holds is answered as if it had just been done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from muster.core.message import EXTRA_REPLY_TO
from muster.core.names import OBSERVER, OPERATOR
from muster.core.protocol import TYPE_OF, Done
from muster.errors import ForbiddenError, MusterError

if TYPE_CHECKING:
    from muster.bus.delivery import Delivery
    from muster.coordinator.events import AnyFact
    from muster.coordinator.state import State


class Ask(NamedTuple):
    """Who asks, under which message id (hex), when on the clock of the facts, and whether a reply is waited for."""

    sender: str
    id: str
    now_s: float
    wants_reply: bool = True


def _plainly(_state: State) -> msgspec.Struct | None:
    return Done(ok=True)


class Answer(NamedTuple):
    """The facts that follow from an ask, and what is answered once they are logged. A reply of None: a later fact answers it."""

    facts: Sequence[AnyFact] = ()
    reply: Callable[[State], msgspec.Struct | None] = _plainly


class Rule(NamedTuple):
    """How an ask is judged. `judge` may raise a MusterError, which is the answer then; nothing has changed.

    `from_anybody`: it is not for the operator alone.
    """

    judge: Callable[[State, Any, Ask], Answer]
    from_anybody: bool = False


Rules: TypeAlias = dict[type[msgspec.Struct], Rule]


def refusal(error: MusterError) -> Done:
    """An error as the answer to an ask."""
    facts = error.as_dict()
    return Done(ok=False, code=str(facts.pop("code")), message=str(facts.pop("message")), facts=facts)


class Asks:
    """The asks of a turn: taken while it is read, answered when it is committed."""

    def __init__(self, rules: Rules) -> None:
        self._rules = {TYPE_OF[struct]: (struct, rule) for struct, rule in rules.items()}
        self._open: list[tuple[Delivery, Callable[[State], msgspec.Struct | None]]] = []

    def knows(self, type_: str) -> bool:
        """Whether messages of this type are asks."""
        return type_ in self._rules

    def take(self, delivery: Delivery, state: State, now_s: float) -> Sequence[AnyFact]:
        """The facts that follow from an ask; its delivery stays open until `answer`. Raises BodyEncodingError."""
        struct, rule = self._rules[delivery.type]
        body = delivery.decode(struct)
        wants_reply = EXTRA_REPLY_TO in delivery.message.extras
        try:
            if not rule.from_anybody and delivery.sender not in (OPERATOR, OBSERVER):
                raise ForbiddenError(f"only the operator may send {delivery.type!r}, not {delivery.sender}")
            answer = rule.judge(state, body, Ask(delivery.sender, delivery.id, now_s, wants_reply))
        except MusterError as error:
            if (
                not wants_reply
            ):  # nobody waits for an answer: the sender's receipt tells, and the letter keeps the reason
                delivery.dead_letter(error.message)
                return ()
            done = refusal(error)
            answer = Answer((), lambda _state: done)
        self._open.append((delivery, answer.reply))
        return answer.facts

    def answer(self, state: State) -> None:
        """The facts are in the log: say so to whoever asked. An asker without room for a reply, or gone, gets none."""
        taken, self._open = self._open, []
        for delivery, reply in taken:
            body = reply(state)
            if body is not None and EXTRA_REPLY_TO in delivery.message.extras:
                with contextlib.suppress(MusterError):
                    delivery.reply(body, type=TYPE_OF[type(body)])
            delivery.ack()
