"""`python -m tests.fuzz.guided TARGET OPTION …`: one target under libFuzzer, in a process of its own. `python -m tests.fuzz` starts it."""

from __future__ import annotations

import importlib
import sys

atheris = importlib.import_module("atheris")

if __name__ == "__main__":
    # Instrumented while it is imported: coverage of muster, and of nothing else, guides the search.
    with atheris.instrument_imports(include=["muster"]):
        from .targets import TARGETS
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], TARGETS[name].execute)
    atheris.Fuzz()
