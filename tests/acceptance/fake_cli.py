"""Plays `claude`, `codex` and `gemini`: replays event streams in their formats. What it does is in the words of the prompt.

Runs as a program of its own, quickly: standard library only, nothing of muster. FAKE_STATE is a folder in which it counts its calls.
"""

from __future__ import annotations

import json
import os
import sys
import time


def say(event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def calls(prompt):
    """How often this prompt was asked, this time included."""
    path = os.path.join(os.environ["FAKE_STATE"], "".join(c if c.isalnum() else "_" for c in prompt)[:100])
    with open(path, "a", encoding="utf-8") as file:
        file.write(".")
    return os.path.getsize(path)


class Cli:
    """One dialect."""

    session = "fake-session"

    def __init__(self, argv):
        self.argv = argv

    def prompt(self):
        raise NotImplementedError

    def begin(self):
        raise NotImplementedError

    def ask(self):
        """Ask for permission, where the dialect has words for that."""
        self.work("Bash")

    def work(self, what):
        raise NotImplementedError

    def end(self, answer):
        raise NotImplementedError

    def fail(self, text):
        raise NotImplementedError

    def limit(self, seconds):
        raise NotImplementedError

    def resumed(self):
        return None


class Claude(Cli):
    def prompt(self):
        return self.argv[self.argv.index("--") + 1]

    def resumed(self):
        return self.argv[self.argv.index("--resume") + 1] if "--resume" in self.argv else None

    def begin(self):
        say(
            {
                "type": "system",
                "subtype": "init",
                "session_id": self.session,
                "model": "claude-fake",
                "tools": ["Bash"],
                "cwd": os.getcwd(),
            }
        )
        info = {"status": "allowed", "resetsAt": int(time.time()) + 3600, "rateLimitType": "five_hour"}
        say({"type": "rate_limit_event", "rate_limit_info": info, "session_id": self.session})

    def work(self, what):
        content = [{"type": "tool_use", "name": what, "input": {}}]
        say(
            {
                "type": "assistant",
                "message": {"content": content, "usage": {"output_tokens": 1}},
                "session_id": self.session,
            }
        )
        say({"type": "user", "message": {"content": [{"type": "tool_result", "content": "ok"}]}})

    def ask(self):
        say({"type": "control_request", "request": {"subtype": "can_use_tool", "tool_name": "Bash"}})

    def _result(self, **more):
        usage = {"input_tokens": 100, "cache_read_input_tokens": 20, "output_tokens": 10}
        say(
            {
                "type": "result",
                "subtype": "success",
                "num_turns": 1,
                "session_id": self.session,
                "total_cost_usd": 0.25,
                "usage": usage,
                **more,
            }
        )

    def end(self, answer):
        self._result(is_error=False, result=answer)

    def fail(self, text):
        self._result(is_error=True, result=text)

    def limit(self, seconds):
        info = {"status": "rejected", "resetsAt": time.time() + seconds, "rateLimitType": "five_hour"}
        say({"type": "rate_limit_event", "rate_limit_info": info, "session_id": self.session})
        self._result(is_error=True, result="API Error: Rate limit reached")


class Codex(Cli):
    def prompt(self):
        return self.argv[self.argv.index("--") + 1]

    def resumed(self):
        return self.argv[self.argv.index("--") - 1] if "resume" in self.argv else None

    def begin(self):
        say({"type": "thread.started", "thread_id": self.session})
        say({"type": "turn.started"})

    def work(self, what):
        say({"type": "item.completed", "item": {"type": "command_execution", "command": what}})

    def end(self, answer):
        say({"type": "item.completed", "item": {"type": "agent_message", "text": answer}})
        say({"type": "turn.completed", "usage": {"input_tokens": 120, "cached_input_tokens": 20, "output_tokens": 10}})

    def fail(self, text):
        say({"type": "error", "message": text})
        say({"type": "turn.failed", "error": {"message": text}})

    def limit(self, seconds):
        self.fail(f"You've hit your usage limit. Please try again in {seconds} seconds.")


class Gemini(Cli):
    def prompt(self):
        return next(word for word in self.argv if word.startswith("--prompt=")).partition("=")[2]

    def resumed(self):
        return self.argv[self.argv.index("--resume") + 1] if "--resume" in self.argv else None

    def begin(self):
        say({"type": "init", "session_id": self.session, "model": "gemini-2.5-pro-fake"})

    def work(self, what):
        say({"type": "tool_use", "tool_name": what})
        say({"type": "tool_result", "status": "success"})

    def _result(self, **more):
        say(
            {
                "type": "result",
                "stats": {"total_tokens": 130, "input_tokens": 120, "output_tokens": 10, "cached": 20},
                **more,
            }
        )

    def end(self, answer):
        say({"type": "message", "role": "assistant", "content": answer, "delta": True})
        self._result(status="success")

    def fail(self, text):
        self._result(status="error", error={"type": "Error", "message": text})

    def limit(self, seconds):
        self.fail(f"RESOURCE_EXHAUSTED: quota exceeded. Please retry in {seconds}s.")


def main():
    name = os.path.basename(sys.argv[0])
    cli = {"claude": Claude, "codex": Codex, "gemini": Gemini}[name](sys.argv[1:])
    assert not sys.stdin.read(1), "standard input must be empty: headless command lines hang on it"
    prompt = cli.prompt()
    count = calls(prompt)
    cli.session = cli.resumed() or f"{name}-{os.getpid()}"
    if "mute" in prompt:  # ends before it speaks its own language
        sys.stderr.write(
            "Error: 429 Too Many Requests, retry-after: 1\n" if "limit" in prompt and count == 1 else "no such model\n"
        )
        if not ("limit" in prompt and count > 1):
            return 1
    cli.begin()
    cli.work("Read")
    if "limit" in prompt and count == 1 and "mute" not in prompt:
        cli.limit(1)
        return 0
    if "permission" in prompt:
        cli.ask()
        time.sleep(3)
    if "slow" in prompt and count == 1:
        time.sleep(60)
    if "edit" in prompt:
        with open("edited-by-" + name, "a", encoding="utf-8") as file:
            file.write(prompt + "\n")
    if "garbage" in prompt:
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\xff\xfe\x00binary\n{cut\n" + b"x" * (10 << 20) + b"\n")
        sys.stdout.buffer.flush()
    if "noend" in prompt:
        return 0
    if "context" in prompt:
        cli.fail("prompt is too long: 250000 tokens > 200000 maximum")
        return 1
    if "fail" in prompt and not ("once" in prompt and count > 1):
        cli.fail("the tests do not pass")
        return 1
    cli.end(f"{name} did: {prompt}" + (f" (resumed {cli.resumed()})" if cli.resumed() else ""))
    return 1 if "exit1" in prompt else 0


if __name__ == "__main__":
    sys.exit(main())
