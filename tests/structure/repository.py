"""What the structure tests know about the repository: its files, and its modules as syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = ROOT / "src" / "muster"
#: Trees whose modules keep the size limits; tests may be longer.
SIZED_TREES = ("src", "examples", "benchmarks", "scripts")


@dataclass(frozen=True)
class Module:
    """One Python file, parsed."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Its path as people say it, from the repository's root."""
        return self.path.relative_to(ROOT).as_posix()


@cache
def modules(*trees: str) -> tuple[Module, ...]:
    """Every module below the given folders of the repository."""
    paths = sorted(path for tree in trees for path in (ROOT / tree).rglob("*.py"))
    texts = [(path, path.read_text(encoding="utf-8")) for path in paths]
    return tuple(Module(path, text, ast.parse(text, filename=str(path))) for path, text in texts)


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@cache
def tracked_files() -> tuple[Path, ...]:
    """The files that belong to the repository: what git tracks, and what it would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    paths = (ROOT / name for name in sorted(set(listing.decode().split("\0"))) if name)
    return tuple(path for path in paths if path.is_file())
