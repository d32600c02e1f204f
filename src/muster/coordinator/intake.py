"""Deliveries as facts. What a message may say depends on who sent it: a body is believed only from the sender its type belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muster.coordinator import events as ev
from muster.coordinator import ordering, pausing, scaling, supervising
from muster.coordinator.asks import Asks, Rules
from muster.coordinator.credible import credible_result
from muster.coordinator.locks import asks as locks
from muster.coordinator.requesting import Numbering, refuse_in_runs, rules
from muster.coordinator.tasks import UNKNOWN
from muster.core.message import EXTRA_REPLY_TO
from muster.core.names import OPERATOR, is_coordinator
from muster.core.orders import ExitSeen
from muster.core.protocol import Drained, InputEnd, Ready, Refused, Result, Stop, Submit, TaskInput
from muster.errors import BodyEncodingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from muster.bus.delivery import Delivery
    from muster.coordinator.shell import Shell

#: Characters of a failed attempt's last words that go into the log.
DETAIL_MAX = 500

#: Every ask that changes something (see `asks`). Each part of the coordinator brings its own.
RULES: Rules = {**locks.RULES, **supervising.RULES, **scaling.RULES, **ordering.RULES, **pausing.RULES}

#: By number, attempt and sender: whatever somebody else says of an attempt must not stand in the way of its holder's word.
ResultsOfTurn = dict[tuple[int, int, str], tuple[Result, "Delivery"]]


class Intake:
    """What a turn has taken in: facts in order, results, deliveries to ack once all is carried out."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.facts: list[ev.AnyFact] = []
        self.results: ResultsOfTurn = {}
        self.acks: list[Delivery] = []
        self.exits: list[ExitSeen] = []
        self._later: list[Delivery] = []
        self.numbering = Numbering(shell.machine.state)
        self.asks = Asks({**RULES, **rules(self.numbering)})
        self._makers: dict[str, Callable[[Delivery], None]] = {
            "task.result": self._result,
            "task.submit": self._submit,
            "task": self._task,
            "agent.ready": self._ready,
            "task.refused": self._refused,
            "task.result.refused": self._noticed,
            "agent.drained": self._drained,
            "run.input_end": self._input_end,
            "fleet.stop": self._stop,
        }

    def hand_over(self) -> tuple[list[ev.AnyFact], ResultsOfTurn, list[Delivery], list[ExitSeen]]:
        """Everything taken in since the last call."""
        taken = self.facts, self.results, self.acks, self.exits
        self.facts, self.results, self.acks, self.exits = [], {}, [], []
        self.numbering.handed_over()
        later, self._later = self._later, []
        for delivery in later:
            self.take(delivery)
            self._shell.wake.set()
        return taken

    def take(self, delivery: Delivery) -> None:
        """Make a fact of a delivery, or pass it to the service that deals with its type; what nobody knows becomes a dead letter."""
        make = self._makers.get(delivery.type.partition("@")[0])
        try:
            if make is not None:
                make(delivery)
                return
            if self.asks.knows(delivery.type):
                shell = self._shell
                self.facts += self.asks.take(delivery, shell.machine.state, shell.clock.now_s())
                return
            keep = self._shell.on_kept.get(delivery.type)
            if keep is not None:
                keep(delivery)
                return
            serve = self._shell.on_message.get(delivery.type)
            if serve is not None:
                serve(delivery)
                self.acks.append(delivery)
                return
        except (BodyEncodingError, UsageError) as error:
            delivery.dead_letter(error.message)
            return
        delivery.dead_letter(f"the coordinator takes no messages of type {delivery.type!r}")

    def _result(self, delivery: Delivery) -> None:
        result = credible_result(delivery.decode(Result))
        shell = self._shell
        if shell.recorder.again(result, delivery):
            return
        key = (result.number, result.attempt, delivery.sender)
        if key in self.results:  # the same again: it is judged in the next turn, when this one has been
            self._later.append(delivery)
            return
        self.results[key] = (result, delivery)
        detail = "" if result.outcome == "done" else _last_words(result)
        if detail and result.agent and result.outcome != "died" and is_coordinator(delivery.sender):
            detail = f"{result.agent}: {detail}"
        attempt = delivery.sender, result.number, result.attempt, result.incarnation
        self.facts.append(
            ev.TaskEnded(
                shell.clock.now_s(),
                *attempt,
                result.outcome,
                result.exit_status,
                result.signal,
                detail,
                result.resets_in_s or 0.0,
                result.session,
                result.tokens,
                result.cost_usd,
            )
        )

    def _submit(self, delivery: Delivery) -> None:
        if not self._is_operator(delivery):
            return
        submit: Submit = delivery.decode(Submit)
        outcomes = self._shell.machine.state.outcomes
        tasks = self.numbering.checked(submit.tasks)
        self._shell.recorder.expect(task.number for task in tasks if outcomes.get(task.number) == UNKNOWN)
        self.facts.append(ev.TasksSubmitted(self._shell.clock.now_s(), tasks))
        self.acks.append(delivery)

    def _task(self, delivery: Delivery) -> None:
        """A task by message: the body is its input, "task@KIND" names who may do it; an ask gets its end as the reply."""
        refuse_in_runs(self._shell.machine.state)
        asker = delivery.sender if EXTRA_REPLY_TO in delivery.message.extras else ""
        kind = delivery.type.partition("@")[2]
        source = f"{delivery.sender}:{delivery.id}"
        number = self.numbering.next()
        task = TaskInput(number, delivery.body, kind, None, source, asker, hops=delivery.message.hops + 1)
        self.facts.append(ev.TasksSubmitted(self._shell.clock.now_s(), self.numbering.checked([task])))
        self.acks.append(delivery)

    def _ready(self, delivery: Delivery) -> None:
        ready: Ready = delivery.decode(Ready)
        self.facts.append(
            ev.AgentReady(
                self._shell.clock.now_s(),
                delivery.sender,
                ready.incarnation,
                ready.slots,
                ready.holding,
                ready.nonce,
                ready.is_out,
            )
        )
        self.acks.append(delivery)

    def _refused(self, delivery: Delivery) -> None:
        refused: Refused = delivery.decode(Refused)
        self.facts.append(
            ev.TaskRefused(
                self._shell.clock.now_s(),
                delivery.sender,
                refused.number,
                refused.attempt,
                refused.incarnation,
                refused.reason,
            )
        )
        self.acks.append(delivery)

    def _noticed(self, delivery: Delivery) -> None:
        self.acks.append(delivery)  # said to a team, and counted by the root

    def _drained(self, delivery: Delivery) -> None:
        drained: Drained = delivery.decode(Drained)
        self.facts.append(ev.AgentDrained(self._shell.clock.now_s(), delivery.sender, drained.incarnation))
        self.acks.append(delivery)

    def _input_end(self, delivery: Delivery) -> None:
        if self._is_operator(delivery):
            end: InputEnd = delivery.decode(InputEnd)
            self.facts.append(ev.InputEnded(self._shell.clock.now_s(), end.total))
            self.acks.append(delivery)

    def _stop(self, delivery: Delivery) -> None:
        if self._is_operator(delivery):
            stop: Stop = delivery.decode(Stop)
            self.facts.append(ev.StopRequested(self._shell.clock.now_s(), stop.mode, stop.reason))
            self.acks.append(delivery)

    @staticmethod
    def _is_operator(delivery: Delivery) -> bool:
        if delivery.sender == OPERATOR:
            return True
        delivery.dead_letter(f"only the operator may send {delivery.type!r}, not {delivery.sender}")
        return False


def _last_words(result: Result) -> str:
    if result.error is not None:
        return str(result.error.get("message", ""))[:DETAIL_MAX]
    return result.stderr[-DETAIL_MAX:].decode(errors="replace").strip()
