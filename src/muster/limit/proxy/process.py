"""The proxy of a fleet: a process of its own below the spawner, with the identity `proxy` on the bus.

It is born like a worker (a grant and a lifeline), asks the fleet's limits over the bus for each request, and notes what each agent
has used. It holds no state that its next life needs but those accounts and its port. It ends by SIGTERM, or when the spawner is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from muster.agent.log import redirect
from muster.bus.bus import Bus
from muster.bus.grant import Grant, acquire
from muster.bus.store import read_spec
from muster.core.names import COORDINATOR, PROXY, agent_id
from muster.core.protocol import MetricsSnapshot
from muster.errors import MusterError
from muster.limit.prices import PriceTable, Usage, built_in
from muster.limit.proxy import life
from muster.limit.proxy.accounts import Ledger
from muster.limit.proxy.gate import Ticket
from muster.limit.proxy.request import Route
from muster.limit.proxy.server import Proxy
from muster.limit.proxy.upstream import Upstream
from muster.security.keys import Keyring, load_master, proxy_secret, receive_root
from muster.security.permissions import read_private
from muster.supervise.platform import allow_descriptors
from muster.supervise.tree import start_time_of

if TYPE_CHECKING:
    from muster.core.orders import WorkerGrant
    from muster.core.spec import ProxySpec, UpstreamSpec

#: Pause between two looks at whether accounts have changed.
SAVE_S = 1.0
#: Wait for the identity of a proxy that has just died, and for its port.
IDENTITY_WAIT_S = 5.0
PORT_WAIT_S = 1.0
#: The proxy could not begin.
EXIT_CANNOT_START = 69
FDS = 4096


class BusTicket:
    """Credit of the fleet's limit that one request holds."""

    def __init__(self, grant: Grant, agent: str) -> None:
        self._grant, self._agent = grant, agent

    def settle(self, usage: Usage, cost_usd: Decimal | None) -> None:
        """See `Ticket`."""
        cost = None if cost_usd is None else float(cost_usd)
        self._grant.settle_for(self._agent, usage.tokens, cost)

    def refused(self, resets_in_s: float | None) -> None:
        """See `Ticket`."""
        self._grant.refused(resets_in_s, "the API refused a request")


class BusGate:
    """The fleet's limits: an API's requests spend the limit of its name."""

    def __init__(self, bus: Bus, incarnation: int) -> None:
        self._bus, self._incarnation = bus, incarnation

    async def admit(self, agent: str, api: str, tokens: int) -> Ticket:
        """See `Gate`."""
        amounts = {"requests": 1, "tokens": tokens}
        return BusTicket(await acquire(self._bus, api, amounts, incarnation=self._incarnation, agent=agent), agent)


def route_of(upstream: UpstreamSpec) -> Route:
    """The way to one API, with its key if that stays here. Raises ConfigError, UnsafePermissionsError, OSError."""
    key = None
    if upstream.key_file:
        value = read_private(Path(upstream.key_file)).strip()
        key = (upstream.key_header.encode(), upstream.key_prefix.encode() + value)
    return Route(Upstream(upstream.url), key)


def prices_of(spec: ProxySpec) -> PriceTable:
    """The prices of models. Raises ConfigError."""
    return built_in() if spec.prices is None else PriceTable.read(Path(spec.prices))


class Recognizer:
    """Tells the agent by the first part of a path, `<agent>.<secret>`."""

    def __init__(self, master: bytes) -> None:
        self._master = master
        self._known: dict[str, bytes] = {}

    def __call__(self, part: bytes) -> str | None:
        name, _, secret = part.decode("ascii", "replace").partition(".")
        expected = self._known.get(name)
        if expected is None:
            try:
                expected = proxy_secret(receive_root(self._master, agent_id(name))).encode()
            except MusterError:
                return None
        if not hmac.compare_digest(expected, secret.encode()):
            return None
        self._known[name] = expected
        return name


def main(grant: WorkerGrant, lifeline_fd: int) -> int:
    """Live as the proxy of the fleet that `grant` names. Returns the exit status."""
    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_live(grant, lifeline_fd))
    except (MusterError, OSError) as error:
        print(f"muster: the proxy: {error}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_START
    finally:
        loop.close()


async def _live(grant: WorkerGrant, lifeline_fd: int) -> int:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    os.set_blocking(lifeline_fd, False)
    loop.add_reader(lifeline_fd, over.set)  # nothing is ever written to it: it can only end
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # the front door's business
    store = Path(grant.store)
    spec = read_spec(store).proxy
    assert spec is not None
    log = redirect(store / "agents" / PROXY)
    allow_descriptors(FDS)
    ledger = Ledger(store)
    bus = await Bus.open(store, PROXY, Keyring.from_grant(grant.agents[0]), wait_s=IDENTITY_WAIT_S)
    proxy = Proxy(
        {upstream.name: route_of(upstream) for upstream in spec.upstreams},
        gate=BusGate(bus, grant.incarnation),
        prices=prices_of(spec),
        ledger=ledger,
        recognize=Recognizer(load_master(store)),
    )
    port = await _listen(proxy, store, spec.port)
    life.write(store, life.Life(port, os.getpid(), start_time_of(os.getpid()) or 0))
    try:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), SAVE_S)
            _tell(ledger, bus, grant.incarnation)
            log.look()
    finally:
        await proxy.close()
        _tell(ledger, bus, grant.incarnation)
        await bus.close()
    return 0


async def _listen(proxy: Proxy, store: Path, wanted: int) -> int:
    """The port that is wanted, or the one of the proxy before, whose clients come again; if it is taken by somebody else, any."""
    before = life.read(store)
    port = wanted or (before.port if before is not None else 0)
    deadline = asyncio.get_running_loop().time() + PORT_WAIT_S
    while True:
        try:
            return await proxy.start(port)
        except OSError:
            if not port:
                raise
            if asyncio.get_running_loop().time() >= deadline:
                port = 0
        await asyncio.sleep(0.05)


def _tell(ledger: Ledger, bus: Bus, incarnation: int) -> None:
    ledger.save()
    news = ledger.news()
    if news:
        with contextlib.suppress(MusterError):  # the next one says it
            bus.post_struct(COORDINATOR, MetricsSnapshot(incarnation=incarnation, counters=news))
