"""What holds for a whole bus: bounds that both sides of a lane must know, and whether messages survive a power cut.

They stand in `<store>/bus.conf`, written when the store is made. The format is lines of "name value", so that a short verb reads it
without importing a parser. A store without the file has the defaults.
"""

from __future__ import annotations

from muster.core import limits
from muster.errors import ConfigError

FILE_NAME = "bus.conf"
#: What an inbox does with a sender that has used up its credit (docs/lane-format.md, "Credit").
REFUSE, WAIT, EVICT_OLDEST = POLICIES = ("refuse", "wait", "evict_oldest")
_FLAGS = {"no": 0, "yes": 1}


def check_overflow(policy: str) -> str:
    """`policy`, if it is one of `POLICIES`. Raises ConfigError."""
    if policy not in POLICIES:
        raise ConfigError(f"overflow is one of {', '.join(POLICIES)}, not {policy!r:.60}", key="overflow")
    return policy


class BusSettings:
    """Bounds of one store. Numbers are counts of messages, bytes, or agents; each holds exactly, at every moment.

    durable: messages survive a power cut; every send waits for the disk.
    agents_max: identities that the store may have.
    lane_messages_max, lane_bytes_max: stored and unacked from one sender to one recipient; bytes are those of segments, as allocated.
    inbox_messages_max: stored for one recipient and unacked, over all senders and both classes.
    outbox_messages_max, outbox_bytes_max: stored by one sender and unacked, over all recipients.
    fleet_messages_max, fleet_bytes_max: stored and unacked in the whole store. Every identity owns an equal share of them.
    """

    __slots__ = (
        "agents_max",
        "durable",
        "fleet_bytes_max",
        "fleet_messages_max",
        "inbox_messages_max",
        "lane_bytes_max",
        "lane_messages_max",
        "outbox_bytes_max",
        "outbox_messages_max",
    )

    def __init__(self, **values: int) -> None:
        """Raises ConfigError: an unknown name, a value out of range, or an inbox too small for its senders."""
        self.durable = False
        self.agents_max = limits.AGENTS_MAX
        self.lane_messages_max = limits.LANE_CREDIT
        self.lane_bytes_max = limits.LANE_BYTES_MAX
        self.inbox_messages_max = limits.INBOX_MESSAGES_MAX
        self.outbox_messages_max = limits.OUTBOX_MESSAGES_MAX
        self.outbox_bytes_max = limits.OUTBOX_BYTES_MAX
        self.fleet_messages_max = limits.FLEET_MESSAGES_MAX
        self.fleet_bytes_max = limits.FLEET_BYTES_MAX
        for name, value in values.items():
            if name not in self.__slots__:
                raise ConfigError(f"bus.{name} is no setting of the bus", key=f"bus.{name}")
            if name == "durable":
                self.durable = bool(value)
                continue
            if value.__class__ is not int or value < 1:
                raise ConfigError(f"bus.{name} must be a whole number of at least 1, not {value!r}", key=f"bus.{name}")
            setattr(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.inbox_messages_max < 2 * self.agents_max:
            raise ConfigError(
                f"bus.inbox_messages_max = {self.inbox_messages_max:,} leaves no room for a first message of each of "
                f"{self.agents_max:,} agents in two classes; it must be at least {2 * self.agents_max:,}",
                key="bus.inbox_messages_max",
            )
        least_bytes = limits.SEGMENT_BYTES_FIRST
        for name in ("lane_bytes_max", "outbox_bytes_max"):
            if getattr(self, name) < least_bytes:
                raise ConfigError(
                    f"bus.{name} is less than the {least_bytes:,} bytes of a first segment", key=f"bus.{name}"
                )
        if self.fleet_messages_max < self.agents_max or self.fleet_bytes_max < self.agents_max * least_bytes:
            raise ConfigError(
                f"the fleet's bounds leave {self.agents_max:,} agents less than a message, or a first segment, each",
                key="bus.fleet_messages_max",
            )

    @property
    def credit_floor(self) -> int:
        """Numbers that a sender may store on a lane that its recipient has not seen yet."""
        return max(1, min(self.lane_messages_max, self.inbox_messages_max // (4 * self.agents_max)))

    @property
    def credit_reserved(self) -> int:
        """The part of an inbox that is every possible lane's floor; the rest is lent."""
        return 2 * self.agents_max * self.credit_floor

    @property
    def sender_messages_max(self) -> int:
        """What one sender may have stored and unacked: its own bound, and its share of the fleet's."""
        return min(self.outbox_messages_max, self.fleet_messages_max // self.agents_max)

    @property
    def sender_bytes_max(self) -> int:
        """The same in bytes of segments."""
        return min(self.outbox_bytes_max, self.fleet_bytes_max // self.agents_max)

    def render(self) -> str:
        """The text of the file."""
        lines = [f"{name} {getattr(self, name):d}" for name in self.__slots__ if name != "durable"]
        return "\n".join([f"durable {'yes' if self.durable else 'no'}", *lines]) + "\n"


def parse_settings(text: str) -> BusSettings:
    """The settings in a file's text. Raises ConfigError (unknown name, no number, out of range)."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if value in _FLAGS:
            values[name] = _FLAGS[value]
        elif value.isascii() and value.isdigit() and len(value) < 19:
            values[name] = int(value)
        else:
            raise ConfigError(f"{FILE_NAME}: {name} {value!r:.60} is no whole number", key=f"bus.{name}")
    return BusSettings(**values)


DEFAULTS = BusSettings()
