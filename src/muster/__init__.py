"""muster: a coordination runtime for fleets of agent processes.

    async with muster.join("alice") as alice:
        receipt = await alice.send("bob", {"n": 1}, type="greeting")

Names are loaded when first used: importing muster costs next to nothing.
"""

from __future__ import annotations

from muster._version import __version__

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muster.agent.agent import Agent
    from muster.agent.task import Task
    from muster.bus.bus import Bus
    from muster.bus.delivery import Delivery, Receipt
    from muster.core.message import Message
    from muster.errors import (
        AskTimeoutError,
        BodyEncodingError,
        BodyTooLargeError,
        BusClosedError,
        BusError,
        EchoStormError,
        ForbiddenError,
        IdentityBusyError,
        InboxFullError,
        InvalidNameError,
        LimitError,
        LockError,
        LockLostError,
        LockTimeoutError,
        MusterError,
        OutboxFullError,
        RateLimitedError,
        StoreFullError,
        UnknownAgentError,
    )
    from muster.joining import join

_HOMES = {
    "Agent": "muster.agent.agent",
    "Bus": "muster.bus.bus",
    "Delivery": "muster.bus.delivery",
    "Receipt": "muster.bus.delivery",
    "Message": "muster.core.message",
    "Task": "muster.agent.task",
    "join": "muster.joining",
    **dict.fromkeys(
        (
            "AskTimeoutError", "BodyEncodingError", "BodyTooLargeError", "BusClosedError", "BusError", "EchoStormError",
            "ForbiddenError", "IdentityBusyError", "InboxFullError", "InvalidNameError", "LimitError", "LockError",
            "LockLostError", "LockTimeoutError", "MusterError", "OutboxFullError", "RateLimitedError", "StoreFullError",
            "UnknownAgentError",
        ),
        "muster.errors",
    ),
}  # fmt: skip

__all__ = [
    "Agent",
    "AskTimeoutError",
    "BodyEncodingError",
    "BodyTooLargeError",
    "Bus",
    "BusClosedError",
    "BusError",
    "Delivery",
    "EchoStormError",
    "ForbiddenError",
    "IdentityBusyError",
    "InboxFullError",
    "InvalidNameError",
    "LimitError",
    "LockError",
    "LockLostError",
    "LockTimeoutError",
    "Message",
    "MusterError",
    "OutboxFullError",
    "RateLimitedError",
    "Receipt",
    "StoreFullError",
    "Task",
    "UnknownAgentError",
    "__version__",
    "join",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'muster' has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value
