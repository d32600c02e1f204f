"""What all errors have in common."""

from __future__ import annotations

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class MusterError(Exception):
    """Something muster refused or could not do, said in one sentence."""

    code: ClassVar[str] = "muster.error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, retry_after_s: float | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.facts = facts

    def as_dict(self) -> dict[str, object]:
        """The error as a JSON-ready object: code, message, retry_after_s and its facts."""
        facts = {
            key: value if isinstance(value, int | float | str | None) else str(value)
            for key, value in self.facts.items()
        }
        return {"code": self.code, "message": self.message, "retry_after_s": self.retry_after_s, **facts}


class UsageError(MusterError):
    """The call or command line cannot be carried out as written; nothing was done."""

    code = "usage"
    exit_status = 2
