"""`send recv reply ask ps` without click. `run` returns None for whatever it does not know, and then nothing was done."""

from __future__ import annotations

import sys

from muster.errors import MusterError

#: Options of each verb: how they are written -> (name, whether a value follows). The click commands take the same and a few more.
_COMMON = {"--json": ("json", False), "--fleet": ("fleet", True), "--store": ("store", True)}
_SPEAK = {**_COMMON, "--as": ("as", True)}
OPTIONS: dict[str, dict[str, tuple[str, bool]]] = {
    "send": {
        **_SPEAK,
        "--type": ("type", True),
        "-t": ("type", True),
        "--json-body": ("json_body", False),
        "--id": ("id", True),
    },
    "reply": {
        **_SPEAK,
        "--answers": ("answers", True),
        "--type": ("type", True),
        "-t": ("type", True),
        "--json-body": ("json_body", False),
    },
    "recv": {**_SPEAK, "-n": ("n", True), "--wait": ("wait", True), "--peek": ("peek", False)},
    "ask": {
        **_SPEAK,
        "--type": ("type", True),
        "-t": ("type", True),
        "--json-body": ("json_body", False),
        "--timeout": ("timeout", True),
    },
    "ps": _COMMON,
}
_WORDS_MAX = {"send": 2, "reply": 2, "recv": 0, "ask": 2, "ps": 0}
_WORDS_MIN = {"send": 1, "reply": 1, "recv": 0, "ask": 1, "ps": 0}


class Parsed:
    """A command line that the short way understands. No dataclass: their module costs more than the verb."""

    def __init__(self, verb: str, words: list[str], values: dict[str, str], flags: set[str]) -> None:
        self.verb = verb
        self.words = words
        self.values = values
        self.flags = flags
        self.wishes: dict[str, object] = {}


def parse(words: list[str]) -> Parsed | None:
    """`words` (verb first), or None if click has to look at them."""
    parsed = Parsed(words[0], [], {}, set())
    options = OPTIONS[parsed.verb]
    rest = iter(words[1:])
    for word in rest:
        if word == "--":
            parsed.words += rest
        elif not word.startswith("-") or word == "-":
            parsed.words.append(word)
        else:
            name, equals, value = word.partition("=")
            option = options.get(name if name.startswith("--") else word)
            if option is None:
                return None
            if not option[1]:
                if equals:
                    return None
                parsed.flags.add(option[0])
                continue
            given = value if equals and name.startswith("--") else next(rest, None)
            if given is None:
                return None
            parsed.values[option[0]] = given
    if not _WORDS_MIN[parsed.verb] <= len(parsed.words) <= _WORDS_MAX[parsed.verb]:
        return None
    return parsed


def run(words: list[str]) -> int | None:
    """Carry out a short verb; its exit status, or None if it was not for us."""
    parsed = parse(words)
    if parsed is None:
        return None
    from muster.cli import speaking
    from muster.cli.output import report_error

    try:
        return speaking.carry_out(parsed)
    except MusterError as error:
        report_error(error, as_json="json" in parsed.flags)
        return error.exit_status
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
