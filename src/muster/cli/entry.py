"""The command's first instructions: short verbs by the short way, everything else through click.

`muster send` runs inside agents' commands, often and many at once, so it must cost little more than an interpreter: bare Python takes
15 ms, click alone adds 50. What the short way does not understand (help, mistakes, rare options) it leaves to click, which then does
the same through the same functions.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    words = sys.argv[1:]
    status: int | None = None
    if words and words[0] in ("send", "recv", "reply", "ask", "ps") and "_MUSTER_COMPLETE" not in os.environ:
        from muster.cli import fast

        status = fast.run(words)
    if status is None:
        from muster.cli.main import run

        status = run(words)
    from muster.cli.output import leave

    leave(status)


if __name__ == "__main__":
    main()
