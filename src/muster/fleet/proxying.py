"""The API proxy as people write it (`[proxy]`, `--proxy`, `--upstream`, `--key-from`), as the fleet's specification has it.

A key that stays with the proxy never stands in a specification, on a command line or in the environment of a command: the front door puts
it into a private file beside the fleet's other keys.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from muster.core.names import PROXY, agent_id, limit_name
from muster.core.spec import AgentSpec, FleetSpec, LimitSpec, ProxySpec, UpstreamSpec
from muster.errors import ConfigError, InvalidNameError
from muster.fleet.tables import ProxyTable, UpstreamTable
from muster.limit.prices import PriceTable
from muster.limit.proxy.upstream import Upstream
from muster.security.permissions import read_private, write_private

#: The APIs that a proxy knows by itself: URL, the header of a key, and what stands before it there.
KNOWN = {
    "anthropic": ("https://api.anthropic.com", "x-api-key", ""),
    "openai": ("https://api.openai.com", "authorization", "Bearer "),
    "gemini": ("https://generativelanguage.googleapis.com", "x-goog-api-key", ""),
}
PORT_MAX = 65_535
KEY_BYTES_MAX = 8192


def proxy_of(table: ProxyTable, place: str, base: Path) -> ProxySpec:
    """The proxy that `table` describes; paths in it are relative to `base`.

    Raises:
        ConfigError: An upstream, the file of prices, the port or where a key comes from cannot be.
    """
    if not 0 <= table.port <= PORT_MAX:
        raise ConfigError(f"{place} port must be between 0 and {PORT_MAX}", key="port")
    prices = None
    if table.prices is not None:
        prices = str((base / table.prices).resolve())
        PriceTable.read(Path(prices))
    names = [*KNOWN, *(name for name in table.upstreams if name not in KNOWN)]
    given = table.upstreams
    upstreams = tuple(
        upstream_of(name, given.get(name, UpstreamTable()), f"{place} upstreams.{name}", base) for name in names
    )
    return ProxySpec(upstreams=upstreams, prices=prices, port=table.port)


def upstream_of(name: str, table: UpstreamTable, place: str, base: Path) -> UpstreamSpec:
    """One API. Raises ConfigError."""
    try:
        limit_name(name)
    except InvalidNameError as error:
        raise ConfigError(f"{place}: {error.message}", key=name) from None
    url, header, prefix = KNOWN.get(name, ("", "authorization", "Bearer "))
    url = table.url or url
    if not url:
        raise ConfigError(f"{place} needs a url", key="url")
    try:
        Upstream(url)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}", key="url") from None
    source = table.key_from or ""
    kind, _, where = source.partition(":")
    if source and (kind not in ("env", "file") or not where):
        # Not shown: whoever writes the key itself here must not find it in a log.
        raise ConfigError(f"{place} key_from is neither env:NAME nor file:PATH", key="key_from")
    if kind == "file":
        source = f"file:{(base / where).resolve()}"
    return UpstreamSpec(
        name=name, url=url, key_header=(table.key_header or header).lower(),
        key_prefix=prefix if table.key_prefix is None else table.key_prefix, key_file=source,
    )  # fmt: skip


def table_of(upstreams: Iterable[str], keys: Iterable[str], prices: str | None, port: int = 0) -> ProxyTable:
    """The options of a command line: `NAME=URL` and `NAME=env:VAR`. Raises ConfigError."""
    found: dict[str, dict[str, str]] = {}
    for option, key, pairs in (("--upstream", "url", upstreams), ("--key-from", "key_from", keys)):
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not name or not equals or not value:
                raise ConfigError(f"{option}: NAME=… is wanted, such as {_EXAMPLES[option]}", key=key)
            found.setdefault(name, {})[key] = value
    return ProxyTable(
        port=port, prices=prices, upstreams={name: UpstreamTable(**values) for name, values in found.items()}
    )


_EXAMPLES = {"--upstream": "anthropic=https://api.anthropic.com", "--key-from": "anthropic=env:ANTHROPIC_API_KEY"}


def with_upstreams(limits: tuple[LimitSpec, ...], proxy: ProxySpec | None) -> tuple[LimitSpec, ...]:
    """Every API behind the proxy has a limit: one that nobody wrote only knows pauses."""
    if proxy is None:
        return limits
    there = {limit.name for limit in limits}
    return (*limits, *(LimitSpec(name=up.name) for up in proxy.upstreams if up.name not in there))


def check_names(agents: Iterable[AgentSpec], place: str) -> None:
    """No agent has the proxy's identity. Raises ConfigError."""
    if any(agent_id(PROXY) == agent for kind in agents for agent in kind.agent_ids()):
        raise ConfigError(f"{place}: in a fleet with a proxy no agent can be called {PROXY!r}", key="proxy")


def keys_of(proxy: ProxySpec, environ: Mapping[str, str]) -> dict[str, bytes]:
    """API -> the key that stays with the proxy.

    Raises:
        ConfigError: A variable is not set, or a file cannot be read or is no key.
        UnsafePermissionsError: Others may read a file.
    """
    return {up.name: _key(up, environ) for up in proxy.upstreams if up.key_file}


def _key(upstream: UpstreamSpec, environ: Mapping[str, str]) -> bytes:
    kind, _, where = upstream.key_file.partition(":")
    place = f"the key of the upstream {upstream.name}"
    if kind == "env":
        if not environ.get(where):
            raise ConfigError(f"{place}: {where} is not set", key="key_from")
        key = environ[where].encode()
    else:
        try:
            key = read_private(Path(where))
        except OSError as error:
            raise ConfigError(f"{place}: {where}: {error.strerror}", key="key_from") from None
    key = key.strip()
    if not key or len(key) > KEY_BYTES_MAX or not key.isascii() or any(byte <= 32 or byte == 127 for byte in key):
        raise ConfigError(f"{place} is no key: it must be printable text without spaces", key="key_from")
    return key


def sealed(spec: FleetSpec, store: Path) -> FleetSpec:
    """`spec` with its proxy's keys in private files of `store`, and out of this process's environment.

    Raises:
        ConfigError, UnsafePermissionsError: As `keys_of`.
    """
    proxy = spec.proxy
    if proxy is None:
        return spec
    upstreams, hidden = [], list(proxy.hidden)
    keys = keys_of(proxy, os.environ)
    for upstream in proxy.upstreams:
        key = keys.get(upstream.name)
        file = store / "keys" / f"proxy-{upstream.name}"
        file.unlink(missing_ok=True)
        if key is None:
            upstreams.append(upstream)
            continue
        write_private(file, key)
        kind, _, where = upstream.key_file.partition(":")
        if kind == "env":
            hidden.append(where)
        upstreams.append(msgspec.structs.replace(upstream, key_file=str(file)))
    for name in hidden:
        os.environ.pop(name, None)
    return msgspec.structs.replace(
        spec, proxy=msgspec.structs.replace(proxy, upstreams=tuple(upstreams), hidden=tuple(hidden))
    )
