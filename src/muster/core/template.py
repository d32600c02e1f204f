"""Command templates: where a task's input goes in the command of its agent.

    {} {input}  the input                    {.}   without its extension
    {/}         its last path component      {//}  its directory ("." if it has none)
    {/.}        last component, no extension {#}   the number of the task

The words are those of GNU parallel. A template without any of them gets the input as a last argument. Every template is filled in one
pass, so text that comes from an input is never searched for placeholders again.

Without a shell an input is one argument, whatever it contains. With a shell (`expand_shell`) it is quoted; a template in which no
quoting can be safe (a placeholder in a comment, a here-document, back quotes, `$'…'`, arithmetic, or an expansion inside double
quotes) is refused instead of filled.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from muster.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PLACEHOLDER = re.compile(r"\{(?:|\.|/|//|/\.|#|input)\}")


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _without_extension(path: str) -> str:
    return os.path.splitext(path)[0]


_VALUES: dict[str, Callable[[str, int], str]] = {
    "{}": lambda text, _number: text,
    "{input}": lambda text, _number: text,
    "{.}": lambda text, _number: _without_extension(text),
    "{/}": lambda text, _number: _last(text),
    "{//}": lambda text, _number: os.path.dirname(text) or ".",
    "{/.}": lambda text, _number: _without_extension(_last(text)),
    "{#}": lambda _text, number: str(number),
}


def has_placeholder(template: Sequence[str]) -> bool:
    """Whether any argument of `template` contains a placeholder."""
    return any("{" in part and _PLACEHOLDER.search(part) is not None for part in template)


def expand(template: Sequence[str], input: str, number: int) -> list[str]:
    """The argument list for one task; `input` stays inside the arguments it was put in and is never split or interpreted."""
    if not has_placeholder(template):
        return [*template, input]
    # A function as replacement: backslashes of the input must not be read as group references.
    return [
        _PLACEHOLDER.sub(lambda m: _VALUES[m[0]](input, number), part) if "{" in part else part for part in template
    ]


def expand_shell(template: Sequence[str], input: str, number: int) -> str:
    """The command line for `/bin/sh -c`: the template's parts joined by blanks, with every value quoted for the place it stands in.

    Raises:
        ConfigError: A placeholder stands where no quoting is safe; nothing was run.
    """
    line = " ".join(template)
    if _PLACEHOLDER.search(line) is None:
        return f"{line} {shlex.quote(input)}"
    parts: list[str] = []
    end = 0
    scan = _Scanner(line)
    for match in _PLACEHOLDER.finditer(line):
        scan.advance(match.start())
        quoted = shlex.quote(_VALUES[match[0]](input, number))
        # Inside quotes: close them, put the quoted value, open them again. The shell joins the three into one word.
        parts += [line[end : match.start()], scan.quote, quoted, scan.quote]
        scan.at = end = match.end()
    parts.append(line[end:])
    return "".join(parts)


_UNSAFE = (("<<", "a here-document"), ("`", "back quotes"), ("$'", "$'…'"), ("((", "arithmetic"))


class _Scanner:
    """Walks over a POSIX shell line (XCU 2.2 and 2.3) and knows whether it stands in single quotes, double quotes or outside."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0
        #: The quote that is open here: "'" , '"' or "".
        self.quote = ""
        for token, what in _UNSAFE:
            if token in line:
                self._refuse(what)

    def _refuse(self, what: str) -> None:
        raise ConfigError(
            f"a shell command with {what} cannot take an input safely; put the input into a variable first, as in: name={{}}; …",
            command=self.line,
        )

    def advance(self, to: int) -> None:
        """Move on to index `to`. Raises ConfigError if it stands in a comment or inside an expansion in double quotes."""
        line = self.line
        while self.at < to:
            char = line[self.at]
            if self.quote == "'":
                self.quote = "" if char == "'" else "'"
            elif char == "\\":
                self.at += 1
                if self.at >= to:
                    self._refuse("a placeholder after a backslash")
            elif self.quote == '"':
                if char == "$" and line[self.at + 1 : self.at + 2] in ("(", "{"):
                    self._refuse('an expansion such as "$(…)" in double quotes')
                self.quote = "" if char == '"' else '"'
            elif char in "'\"":
                self.quote = char
            elif char == "#" and (self.at == 0 or line[self.at - 1] in " \t\n;&|()"):
                newline = line.find("\n", self.at)
                if newline < 0 or newline >= to:
                    self._refuse("a placeholder in a comment")
                self.at = newline
            self.at += 1
