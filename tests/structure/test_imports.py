"""Imports point downward only, so that each part can be read, tested and replaced without the parts above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .repository import SOURCE, Module, modules

#: From the ground up. A part may import from its own floor and from those below it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "_version"}),
    frozenset({"core"}),
    frozenset({"security"}),
    frozenset({"bus"}),
    frozenset({"agent", "limit", "health", "metrics", "supervise"}),
    frozenset({"coordinator"}),
    frozenset({"fleet"}),
    frozenset({"adapters", "cli", "tui", "web", "testing", "joining"}),
    # The public names, and `python -m muster`: they gather everything and are imported by none of it.
    frozenset({"__init__", "__main__"}),
)
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}

#: Modules that reach the outside world; `core` decides and does not act.
OUTSIDE_WORLD = frozenset(
    {"asyncio", "multiprocessing", "selectors", "signal", "socket", "subprocess", "threading", "uvloop"}
)


def part_of(module: Module) -> str:
    """The package, or the top-level module, that a file belongs to."""
    first: str = module.path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imported_names(module: Module) -> Iterator[str]:
    """Full names of what a module imports, wherever in it the import stands."""
    package = module.path.relative_to(SOURCE.parent).with_suffix("").parts[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(piece for piece in (above, node.module or "") if piece)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_parts(module: Module) -> Iterator[str]:
    """The parts of muster that a module imports; `__init__` for a name taken from the package itself."""
    for name in imported_names(module):
        pieces = name.split(".")
        if pieces[0] == "muster":
            yield pieces[1] if len(pieces) > 1 and pieces[1] in FLOOR_OF else "__init__"


@pytest.mark.parametrize("module", modules("src/muster"), ids=lambda module: module.name)
def test_imports_point_downward(module: Module) -> None:
    part = part_of(module)
    assert part in FLOOR_OF, f"{module.name}: no floor for `{part}`; give it one in FLOORS"
    upward = sorted({other for other in imported_parts(module) if FLOOR_OF[other] > FLOOR_OF[part]})
    assert not upward, f"{module.name}: `{part}` must not import from {upward}, which stand above it"


@pytest.mark.parametrize("module", modules("src/muster/core"), ids=lambda module: module.name)
def test_core_does_not_reach_the_outside_world(module: Module) -> None:
    reached = sorted({name.split(".")[0] for name in imported_names(module)} & OUTSIDE_WORLD)
    assert not reached, f"{module.name} imports {reached}: core decides, the parts above it act"
