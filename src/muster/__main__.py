"""`python -m muster` is the same program as `muster`."""

from __future__ import annotations

from muster.cli.entry import main

if __name__ == "__main__":
    main()
