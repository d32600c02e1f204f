"""What `send recv reply ask ps` do once their options are known; both ways of parsing end here. Standard library only at the top."""

from __future__ import annotations

import sys

from muster.cli.output import columns, print_json, safe
from muster.errors import AskTimeoutError, ConfigError
from muster.fleet.speak import Speaker, ask, parse_body, peek, receive, reply, send, speaker

# Not from typing: importing it would double the cost of a short verb. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muster.cli.fast import Parsed

#: How long `ask` waits for a reply.
ASK_TIMEOUT_S = 30.0


def carry_out(parsed: Parsed) -> int:
    """Run a parsed short verb. Returns its exit status; raises MusterError."""
    verbs = {"send": _send, "recv": _recv, "reply": _reply, "ask": _ask, "ps": _ps}
    return verbs[parsed.verb](parsed)


def _who(parsed: Parsed) -> Speaker:
    return speaker(parsed.values.get("as"), parsed.values.get("fleet"), parsed.values.get("store"))


def _body(parsed: Parsed) -> Any:
    as_json = "json_body" in parsed.flags
    if len(parsed.words) > 1:
        return parse_body(parsed.words[1], as_json=as_json)
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no body: write it behind the recipient, or give it on standard input", key="body")
    data = sys.stdin.buffer.read()
    try:
        return parse_body(data.decode(), as_json=as_json)
    except UnicodeDecodeError:
        return data  # bytes travel as they are


def _duration(text: str, what: str) -> float:
    from muster.fleet.durations import parse_duration

    return parse_duration(text, what)


def _send(parsed: Parsed) -> int:
    envelope: dict[str, Any] = {"type": parsed.values.get("type", "message")}
    if "id" in parsed.values:
        envelope["message_id"] = parsed.values["id"]
    if "control" in parsed.flags:
        envelope["priority"] = "control"
    if "wait" in parsed.values:
        envelope["wait_s"] = _duration(parsed.values["wait"], "--wait")
    body = _body(parsed)
    if parsed.wishes:
        from muster.fleet.task_requests import request

        body = request(parsed.words[0], envelope["type"], body, parsed.wishes)
        envelope["type"] = "task.request"
    receipt = send(_who(parsed), parsed.words[0], body, **envelope)
    if "json" in parsed.flags:
        print_json(receipt)
    return 0


def _reply(parsed: Parsed) -> int:
    envelope: dict[str, Any] = {"type": parsed.values["type"]} if "type" in parsed.values else {}
    if "wait" in parsed.values:
        envelope["wait_s"] = _duration(parsed.values["wait"], "--wait")
    receipt = reply(_who(parsed), parsed.words[0], _body(parsed), answers=parsed.values.get("answers", ""), **envelope)
    if "json" in parsed.flags:
        print_json(receipt)
    return 0


def _recv(parsed: Parsed) -> int:
    is_peek = "peek" in parsed.flags
    text = parsed.values.get("n", "0" if is_peek else "1")
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"-n: {text!r:.60} is not a whole number", key="n")
    wait_s = _duration(parsed.values.get("wait", "0"), "--wait")
    show = print_json if "json" in parsed.flags else _print_message

    def show_now(message: dict[str, Any]) -> None:
        show(message)
        sys.stdout.flush()  # the ack follows: what is acked has left this process

    if is_peek:
        if wait_s:
            raise ConfigError("--peek shows what is there now; it does not --wait", key="wait")
        return 0 if peek(_who(parsed), int(text), show_now) else 1
    return 0 if receive(_who(parsed), int(text), wait_s, show_now) else 1


def _ask(parsed: Parsed) -> int:
    timeout_s = _duration(parsed.values.get("timeout", str(ASK_TIMEOUT_S)), "--timeout")
    if timeout_s <= 0:
        raise AskTimeoutError("--timeout must be longer than nothing; nothing was sent")
    reply = ask(
        _who(parsed), parsed.words[0], _body(parsed), type=parsed.values.get("type", "ask"), timeout_s=timeout_s
    )
    if "json" in parsed.flags:
        print_json(reply)
    else:
        sys.stdout.write(_text(reply["body"]) + "\n")
    return 0


def _print_message(message: dict[str, Any]) -> None:
    # The sender stands in front of every message: text from a peer is data, and whose it is belongs to it.
    asks = " asks" if message["asks"] else ""
    sys.stdout.write(f"{message['sender']}{asks}: {_text(message['body'])}\n")


def _text(body: Any) -> str:
    if isinstance(body, bytes):
        body = body.decode(errors="backslashreplace")
    if isinstance(body, str):
        return safe(body) if sys.stdout.isatty() else body
    import json

    return json.dumps(body, ensure_ascii=False, default=str)


def _ps(parsed: Parsed) -> int:
    from muster.fleet import processes

    rows = processes.rows(parsed.values.get("fleet"), parsed.values.get("store"))
    if "json" in parsed.flags:
        print_json(rows)
        return 0
    if not rows:
        sys.stdout.write("no fleet is running\n")
        return 0
    cells = [(row["fleet"], row["role"], row["name"], row["pid"], row["state"], row["starts"]) for row in rows]
    sys.stdout.write("\n".join(columns(processes.HEAD, cells, colors={"silent": "red", "absent": "red"})) + "\n")
    return 0
