"""Coding command lines as people ask for them (`--preset claude`, `preset = "claude"`), turned into a command and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from muster.core.presets import preset as preset_of
from muster.core.spec import CodingSpec
from muster.core.template import has_placeholder
from muster.errors import ConfigError, WorktreeError

Worktree = Literal["", "changed", "always", "never"]
KEEPS: tuple[Worktree, ...] = ("changed", "always", "never")


@dataclass(frozen=True)
class Coding:
    """What a preset makes of a kind."""

    command: tuple[str, ...]
    spec: CodingSpec
    timeout_s: float


def coding_of(name: str, args: tuple[str, ...], prompt: str | None, transcripts: Path | None, place: str) -> Coding:
    """The command and description of preset `name` with the user's words.

    Args:
        name: The preset's.
        args: Words for the command line itself, such as `--model x`.
        prompt: The text around an input, with a placeholder for it; None: the input is the prompt.
        transcripts: Directory for the event streams.
        place: Where this stands, for errors.

    Raises:
        ConfigError: There is no such preset, or the prompt leaves the input out.
    """
    try:
        preset = preset_of(name)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}", key="preset") from None
    if has_placeholder(args):
        raise ConfigError(f"{place}: the input belongs into the prompt, not into words for {name}", key="args")
    if prompt is not None and not has_placeholder([prompt]):
        raise ConfigError(f"{place}: the prompt must say with {{}} where the input stands", key="prompt")
    spec = CodingSpec(
        preset=name,
        args=args,
        prompt="{input}" if prompt is None else prompt,
        transcripts=None if transcripts is None else str(transcripts),
    )
    return Coding(preset.command(args, prompt=spec.prompt), spec, preset.timeout_s)


def worktree_of(wanted: object, place: str) -> Worktree:
    """`true` or a policy as what becomes of a worktree; "" for none.

    Raises:
        ConfigError: It is neither.
    """
    if wanted is True:
        return "changed"
    if wanted in (None, False):
        return ""
    for keep in KEEPS:
        if wanted == keep:
            return keep
    raise ConfigError(f"{place}: {wanted!r:.40} is none of true, changed, always and never", key="worktree")


def check_worktree(cwd: Path, place: str) -> None:
    """Whether worktrees can be made of the repository at `cwd`.

    Raises:
        ConfigError: They cannot.
    """
    from muster.agent.worktree import repository_of

    try:
        repository_of(cwd)
    except WorktreeError as error:
        raise ConfigError(f"{place}: {error.message}", key="worktree") from None
