"""What the documentation says is what the code does, wherever a machine can compare the two."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections import Counter
from collections.abc import Iterator

import muster

from .repository import ROOT

DOCS = ROOT / "docs"
GLOSSARY_WORDS = {
    "fleet", "agent", "worker", "coordinator", "spawner", "team", "lane", "receipt", "delivery", "task", "attempt", "dead letter",
}  # fmt: skip


def test_every_error_is_documented_with_its_code() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "error_table.py"))
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert page == script["page_with_table"](page), (
        "docs/errors.md is behind: run .venv/bin/python scripts/error_table.py"
    )


def test_error_codes_are_unique_and_speak_in_one_sentence_about_what_happened() -> None:
    kinds = runpy.run_path(str(ROOT / "scripts" / "error_table.py"))["public_errors"]()
    assert kinds
    assert [code for code, count in Counter(kind.code for kind in kinds).items() if count > 1] == []
    assert [kind.__name__ for kind in kinds if not (kind.__doc__ or "").strip()] == []
    assert [kind.__name__ for kind in kinds if not kind.__name__.endswith("Error")] == []
    assert [kind.code for kind in kinds if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", kind.code)] == []


def test_glossary_explains_the_words() -> None:
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", glossary, re.MULTILINE)
    assert GLOSSARY_WORDS <= {word for word, _ in explained}
    assert [word for word, count in Counter(word for word, _ in explained).items() if count > 1] == []


def pages_of(nav: object) -> Iterator[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list):
        for entry in nav:
            yield from pages_of(entry)
    elif isinstance(nav, dict):
        for entry in nav.values():
            yield from pages_of(entry)


def test_navigation_names_every_page_once_and_no_other() -> None:
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    existing = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(pages_of(config["project"]["nav"])) == existing


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "adr" / "index.md").read_text(encoding="utf-8")
    decisions = sorted(path.name for path in (DOCS / "adr").glob("[0-9]*.md"))
    assert decisions
    assert [name for name in decisions if f"({name})" not in index] == []


def test_public_names_are_those_of_the_snapshot() -> None:
    """A public name is a promise: adding or removing one is a decision, seen here in the diff."""
    snapshot = (ROOT / "tests" / "structure" / "public_names.txt").read_text(encoding="utf-8").split()
    assert sorted(getattr(muster, "__all__", [])) == snapshot
    assert [name for name in snapshot if not hasattr(muster, name)] == []


def test_version_stands_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
