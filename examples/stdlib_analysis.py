"""What the demo's agents do: read one file of Python's standard library with `ast` and say what is in it.

`analyse` is the handler: a plain function, no muster in it. The rest says which files there are and adds the answers up.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Folders that hold no part of the library itself: what was installed beside it, caches, tests and their data.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
#: How many of the most imported modules the totals name.
TOP_IMPORTS = 5


def library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files() -> dict[str, int]:
    """Every .py file of the library: path from its folder -> size in bytes, sorted by path."""
    root = library()
    found = {}
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        if not LEFT_OUT.intersection(inside.parts) and path.is_file():
            found[inside.as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))


def fingerprint(paths: Iterable[str]) -> str:
    """SHA-256 over the paths and what stands in them, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256((library() / path).read_bytes()).digest()
        total.update(path.encode() + b"\0" + content)
    return total.hexdigest()


def analyse(path: str) -> dict[str, Any]:
    """What is in one file of the library. A file that does not parse is an answer, too: `error` says why, the counts are 0."""
    source = (library() / path).read_bytes()
    found: dict[str, Any] = {
        "path": path,
        "lines": len(source.splitlines()),
        "functions": 0,
        "classes": 0,
        "imports": {},
        "longest_function": None,
        "longest_lines": 0,
        "error": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old files are not our business
            tree = ast.parse(source, filename=path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
        return found
    imports: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found["functions"] += 1
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > found["longest_lines"]:
                found["longest_function"], found["longest_lines"] = node.name, lines
        elif isinstance(node, ast.ClassDef):
            found["classes"] += 1
        elif isinstance(node, ast.Import):
            imports.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports["." * node.level + (node.module or "").split(".")[0]] += 1
    found["imports"] = dict(sorted(imports.items()))
    return found


def totals(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The answers for all files added up. Their order does not matter."""
    ordered = sorted(answers, key=lambda answer: str(answer["path"]))
    imports: Counter[str] = Counter()
    for answer in ordered:
        imports.update(answer["imports"])
    longest = max(ordered, key=lambda answer: int(answer["longest_lines"]), default=None)
    ranked = sorted(imports.items(), key=lambda item: (-item[1], item[0]))
    return {
        "files": len(ordered),
        "lines": sum(answer["lines"] for answer in ordered),
        "functions": sum(answer["functions"] for answer in ordered),
        "classes": sum(answer["classes"] for answer in ordered),
        "imports": imports.total(),
        "most_imported": [list(item) for item in ranked[:TOP_IMPORTS]],
        "longest_function": None
        if longest is None
        else {"path": longest["path"], "name": longest["longest_function"], "lines": longest["longest_lines"]},
        "unparsable": [answer["path"] for answer in ordered if answer["error"] is not None],
    }
