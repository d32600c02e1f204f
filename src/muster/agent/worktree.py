"""One git worktree per task: agents that edit the same repository at once, each in a tree and on a branch of its own.

A worktree is made for a task (not for an attempt: a retry goes on where the one before stopped) and looked at when the task's attempt has
ended. What holds work is kept, what holds none leaves no trace. Nothing is ever removed that has changes, unless the policy says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from muster.errors import WorktreeError

Keep = Literal["changed", "always", "never"]

#: A git call that takes longer hangs: on a lock that somebody left, or on a network that it should not need.
GIT_S = 120.0
#: Settings that keep git from asking, waiting for an editor or running a repository's hooks for our own book-keeping.
_GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", "-c", "gc.auto=0")
_ENV = {"GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true", "LC_ALL": "C"}


@dataclass(frozen=True)
class Worktree:
    """A task's own tree. `base` is the commit that its branch began at."""

    path: Path
    branch: str
    repository: Path
    base: str
    #: A reference that keeps `base` for later attempts.
    base_ref: str

    def has_work(self) -> bool:
        """Whether there are commits of its own, or changes, or files that git does not know and does not ignore. Raises WorktreeError."""
        if _git(self.path, "rev-parse", "HEAD") != self.base:
            return True
        return bool(_git(self.path, "status", "--porcelain", "--untracked-files=normal"))

    def finish(self, keep: Keep) -> bool:
        """Keep or remove it as the policy says; whether it was kept.

        Raises:
            WorktreeError: git refused; the tree is still there.
        """
        if keep == "always" or (keep == "changed" and self.has_work()):
            return True
        with _one_at_a_time(self.repository):
            _git(self.repository, "worktree", "remove", "--force", str(self.path))
            _git(self.repository, "branch", "-D", self.branch)
            _try(self.repository, "update-ref", "-d", self.base_ref)
        return False


def repository_of(directory: Path) -> Path:
    """The top of the repository that `directory` is in.

    Raises:
        WorktreeError: It is in none, the repository has no commit, or there is no git.
    """
    try:
        top = Path(_git(directory, "rev-parse", "--show-toplevel"))
    except WorktreeError as error:
        if "not a git repository" not in error.message:
            raise
        raise WorktreeError(f"{directory} is not in a git repository", path=str(directory)) from None
    _head(top)
    return top


def make(directory: Path, places: Path, fleet: str, number: int) -> Worktree:
    """The worktree of task `number`: `places`/task-N on branch muster/FLEET/task-N, made from HEAD, or the one that is there already.

    Raises:
        WorktreeError: git refused; nothing was made that was not removed again.
    """
    repository = repository_of(directory)
    path, branch = places / f"task-{number}", f"muster/{fleet}/task-{number}"
    base_ref = f"refs/muster-base/{fleet}/task-{number}"
    with _one_at_a_time(repository):
        if path.is_dir() and (found := _try(path, "branch", "--show-current")) is not None:
            if found != branch:
                raise WorktreeError(
                    f"{path} is on the branch {found!r}, and task {number} expects {branch!r}", path=str(path)
                )
            base = _try(repository, "rev-parse", "--verify", "--quiet", base_ref) or _head(repository)
            return Worktree(path, branch, repository, base, base_ref)
        base = _head(repository)
        places.mkdir(parents=True, exist_ok=True)
        _git(repository, "worktree", "prune")
        exists = _try(repository, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}") is not None
        words = [str(path), branch] if exists else ["-b", branch, str(path), base]
        _git(repository, "worktree", "add", "--quiet", *words)
        if exists:
            base = _try(repository, "rev-parse", "--verify", "--quiet", base_ref) or base
        _git(repository, "update-ref", base_ref, base)
    return Worktree(path, branch, repository, base, base_ref)


def _head(repository: Path) -> str:
    try:
        return _git(repository, "rev-parse", "--verify", "HEAD")
    except WorktreeError:
        raise WorktreeError(
            f"the repository {repository} has no commit yet, so there is nothing to make a worktree of"
        ) from None


def _try(directory: Path, *words: str) -> str | None:
    with contextlib.suppress(WorktreeError):
        return _git(directory, *words)
    return None


def _git(directory: Path, *words: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _ENV
    try:
        done = subprocess.run(
            (*_GIT, *words),
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_S,
            check=False,
        )
    except FileNotFoundError:
        if not directory.is_dir():
            raise WorktreeError(f"there is no directory {directory}", path=str(directory)) from None
        raise WorktreeError("worktrees need git, and there is no git on this machine") from None
    except subprocess.TimeoutExpired:
        raise WorktreeError(f"git {words[0]} did not end within {GIT_S:.0f} s", path=str(directory)) from None
    except OSError as error:
        raise WorktreeError(f"git cannot be run in {directory}: {error.strerror}", path=str(directory)) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = next(
            (line for line in said if line.startswith(("fatal:", "error:"))), said[0] if said else "no reason given"
        )
        raise WorktreeError(f"git {words[0]}: {why.partition(': ')[2] or why}", path=str(directory))
    return done.stdout.decode(errors="surrogateescape").strip()


@contextlib.contextmanager
def _one_at_a_time(repository: Path) -> Iterator[None]:
    """Git's own locks make the second of two fail instead of wait; so muster's processes queue here."""
    common = Path(_git(repository, "rev-parse", "--git-common-dir"))
    path = (repository / common) / "muster-worktrees.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WorktreeError(f"{path} cannot be opened: {error.strerror}", path=str(path)) from None
    try:
        # Held for milliseconds, and let go by the kernel with its holder.
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
