"""`Bus.submit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muster.core.message import Message

#: How long the coordinator may take to accept a task: it may be starting again.
SUBMIT_S = 30.0


class Submitting:
    """The part of a bus that gives the coordinator tasks."""

    async def submit(self: Any, input: Any, *, timeout_s: float | None = None, **wishes: Any) -> int:
        """Give the fleet a task; its number, once the coordinator has it in its log.

        Args:
            input: What the handler or command gets; any value that a message can carry.
            timeout_s: The task is ended with its whole process tree when it takes longer; None: what its agent's kind says.
            wishes: `kind` and `tags` of its agent; `priority` from -100 to 100; `delay_s`; `after`, numbers of tasks that must be done
                first; `retries` and `backoff_s`, instead of the fleet's. See docs/tasks.md.

        Raises:
            ConfigError, DependencyError, UsageError: The task cannot be accepted as wished; it was not.
            AskTimeoutError: No answer within 30 s; the request is stored, and may still be accepted.
            TypeError: A wish that does not exist; nothing was sent.
        """
        from muster.core.names import COORDINATOR
        from muster.core.requests import Done, TaskRequest
        from muster.errors import error_of

        request = TaskRequest(input=input, timeout_s=timeout_s, **wishes)
        reply: Message = await self.ask(COORDINATOR, request, type="task.request", timeout_s=SUBMIT_S)
        done = reply.decode(Done)
        if not done.ok:
            raise error_of({**done.facts, "code": done.code, "message": done.message})
        return int(done.facts["number"])
