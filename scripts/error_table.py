"""Write the table of docs/errors.md anew from `muster.errors`: `.venv/bin/python scripts/error_table.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from muster import errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
BEGIN = "<!-- table: scripts/error_table.py -->"
END = "<!-- end of table -->"


def public_errors() -> list[type[errors.MusterError]]:
    """Every error class of the module, in the order in which it is written down."""
    return [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind)
        and issubclass(kind, errors.MusterError)
        and kind.__module__.partition(".errors")[0] == "muster"
    ]


def table() -> str:
    """The table as Markdown: class, code, exit status, meaning."""
    rows = ["| error | code | exit status | meaning |", "|---|---|---|---|"]
    for kind in public_errors():
        meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split()).replace("|", "\\|")
        rows.append(f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_status} | {meaning} |")
    return "\n".join(rows)


def page_with_table(page: str) -> str:
    """The page with its table replaced by the one that fits the module."""
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
