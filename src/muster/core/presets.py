"""Coding command lines as presets: how each is started without a terminal, told to speak its event stream, and resumed.

A preset is data. The words are templates of `core.template`; `{session}` is the session of an earlier attempt. A prompt is the last word
and stands behind `--` (or inside `--prompt=`), so that one that begins with a dash is not taken for an option.
"""

from __future__ import annotations

from dataclasses import dataclass

from muster.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """One coding command line."""

    name: str
    #: What comes before and after the user's own words.
    before: tuple[str, ...]
    after: tuple[str, ...]
    #: The same when a session is taken up again.
    resume_before: tuple[str, ...]
    resume_after: tuple[str, ...]
    #: How its standard output is read (`agent.dialects`).
    dialect: str
    #: The API that its requests go to, for limits and the proxy.
    api: str
    #: Variables that point its client at a proxy; `{url}` is the agent's own address there.
    base_url: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 3600.0

    def command(self, words: tuple[str, ...] = (), session: str = "", prompt: str = "{input}") -> tuple[str, ...]:
        """The command's template with the user's `words` and `prompt`; with a `session`, one that goes on with it."""
        before, after = (self.resume_before, self.resume_after) if session else (self.before, self.after)
        mine = (tuple(word.replace("{session}", session) for word in part) for part in (before, after))
        first, last = mine
        return (*first, *words, *(word.replace("{input}", prompt) for word in last))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="claude",
            before=("claude", "-p", "--output-format", "stream-json", "--verbose"),
            after=("--", "{input}"),
            resume_before=("claude", "-p", "--output-format", "stream-json", "--verbose", "--resume", "{session}"),
            resume_after=("--", "{input}"),
            dialect="claude",
            api="anthropic",
            base_url=(("ANTHROPIC_BASE_URL", "{url}/anthropic"),),
        ),
        Preset(
            name="codex",
            before=("codex", "exec", "--json", "--skip-git-repo-check"),
            after=("--", "{input}"),
            resume_before=("codex", "exec", "resume", "--json", "--skip-git-repo-check"),
            resume_after=("{session}", "--", "{input}"),
            dialect="codex",
            api="openai",
            base_url=(("OPENAI_BASE_URL", "{url}/openai/v1"),),
        ),
        Preset(
            name="gemini",
            before=("gemini", "--output-format", "stream-json"),
            after=("--prompt={input}",),
            resume_before=("gemini", "--output-format", "stream-json", "--resume", "{session}"),
            resume_after=("--prompt={input}",),
            dialect="gemini",
            api="gemini",
            base_url=(("GOOGLE_GEMINI_BASE_URL", "{url}/gemini"),),
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset `name`.

    Raises:
        ConfigError: There is none of that name.
    """
    found = PRESETS.get(name)
    if found is None:
        raise ConfigError(f"there is no preset {name!r:.60}; there are {', '.join(PRESETS)}", key="preset")
    return found
