"""Real command lines, real fleets, real kills."""

from __future__ import annotations

import itertools
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from .place import Place

#: Files of the running Python that the tests hash. Caches are left out: they may be written meanwhile.
REAL_FILES = 2_000


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of the test's own; whatever is left there at the end is ended and removed."""
    place = Place()
    yield place
    place.close()


@pytest.fixture(scope="session")
def real_files() -> list[str]:
    """2,000 files that every installation has."""
    paths = sysconfig.get_paths()
    found = [
        str(path)
        for folder in (paths["stdlib"], paths["purelib"])
        for path in itertools.islice(plain_files(Path(folder)), REAL_FILES)
    ][:REAL_FILES]
    if len(found) < REAL_FILES:
        pytest.skip(f"this Python has only {len(found)} files")
    return found


def plain_files(folder: Path) -> Iterator[Path]:
    """Files below `folder` whose names fit into a line, without what is found in a folder of its own."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", "dist-packages"})
        for name in sorted(names):
            path = Path(where, name)
            if path.is_file() and str(path).isprintable():
                yield path


@pytest.fixture(scope="session")
def hashed_directly(real_files: list[str]) -> list[bytes]:
    """What sha256sum itself says about them, a line per file in their order."""
    ran = subprocess.run(["sha256sum", *real_files], stdout=subprocess.PIPE, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == REAL_FILES
    return lines
