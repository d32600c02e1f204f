"""What may not stand in a file of this repository."""

from __future__ import annotations

import re

import pytest

from .repository import ROOT, tracked_files

# Put together here, so that this file does not contain what it forbids.
REGISTRY_HOSTS = tuple(
    ".".join(labels)
    for labels in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
)
#: Paths that exist on one machine only.
MACHINE_PATH = re.compile(r"(?<![\w.*-])/(?:work|root|opt/pypi|Users/[a-z]+)/[\w.]")


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked_files():
        try:
            found.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_the_repository_has_files() -> None:
    assert len(tracked_files()) > 20


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_no_file_names_a_package_registry(host: str) -> None:
    assert [name for name, text in texts() if host in text] == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert [(name, found.group()) for name, text in texts() if (found := MACHINE_PATH.search(text))] == []


def test_lock_files_pin_and_hash_everything() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        entries = re.sub(r"\s*\\\n\s*", " ", path.read_text(encoding="utf-8")).splitlines()
        unlocked = [
            entry
            for entry in entries
            if entry.strip() and not entry.lstrip().startswith("#") and ("==" not in entry or "--hash=" not in entry)
        ]
        assert unlocked == [], path.name


def test_scripts_that_people_start_are_executable() -> None:
    for name in (".ci/run", "scripts/setup.sh", "scripts/lock.sh"):
        assert (ROOT / name).stat().st_mode & 0o111 == 0o111, name
