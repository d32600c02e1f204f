"""`muster ps`: the processes of fleets."""

from __future__ import annotations

import click

from muster.cli.fast import Parsed
from muster.cli.main import common
from muster.cli.speaking import carry_out


@click.command("ps", short_help="List the processes of fleets.")
@common()
def command(as_json: bool, store: str | None, fleet: str | None) -> int:
    """List spawner, coordinator and workers of every fleet of this user that runs, or of --fleet NAME."""
    values = {key: value for key, value in (("store", store), ("fleet", fleet)) if value}
    return carry_out(Parsed("ps", [], values, {"json"} if as_json else set()))
