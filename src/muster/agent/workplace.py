"""A git worktree around each attempt: made before it starts, kept or removed when nothing of it is left. Around any executor."""

from __future__ import annotations

import msgspec

from muster.agent import worktree
from muster.agent.attempt import Ending, result_of
from muster.errors import WorktreeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from muster.agent.attempt import AgentSetting, Attempt, Ended, Executor
    from muster.agent.remains import Remains
    from muster.core.protocol import Result


class InWorktrees:
    """An `Executor` whose attempts each work in a tree of their own (`attempt.cwd`)."""

    def __init__(self, inner: Executor, setting: AgentSetting, remains: Remains) -> None:
        assert setting.kind.worktree
        self._inner, self._setting, self._remains = inner, setting, remains
        self._keep: worktree.Keep = setting.kind.worktree
        self._trees: dict[tuple[int, int], worktree.Worktree] = {}
        self._preparing: dict[tuple[int, int], Attempt] = {}

    def start(self, attempt: Attempt, ended: Ended) -> None:
        """See `Executor`. git runs in a thread meanwhile."""
        attempt.begin()
        self._preparing[attempt.key] = attempt
        self._setting.loop.create_task(self._start(attempt, ended))

    async def _start(self, attempt: Attempt, ended: Ended) -> None:
        try:
            tree = await self._git(self._make, attempt.number)
        except WorktreeError as error:
            del self._preparing[attempt.key]
            ended(attempt, result_of(attempt, Ending("failed", error=error.as_dict())))
            return
        del self._preparing[attempt.key]
        self._trees[attempt.key] = tree
        attempt.cwd = str(tree.path)
        # An attempt that was told to end meanwhile ends in the executor's own way.
        self._inner.start(attempt, lambda done, result: self._finish(done, result, ended))

    def _make(self, number: int) -> worktree.Worktree:
        from pathlib import Path

        cwd = Path(self._setting.kind.cwd or ".")
        return worktree.make(
            cwd, place_of(worktree.repository_of(cwd), self._setting.fleet.name), self._setting.fleet.name, number
        )

    def _finish(self, attempt: Attempt, result: Result, ended: Ended) -> None:
        self._setting.loop.create_task(self._let_go(attempt, result, ended))

    async def _let_go(self, attempt: Attempt, result: Result, ended: Ended) -> None:
        tree = self._trees.pop(attempt.key)
        told: dict[str, Any] = {"path": str(tree.path), "branch": tree.branch}
        try:
            # Only an end is an end: what is tried again goes on in the same tree.
            told["kept"] = True if result.outcome != "done" else await self._git(tree.finish, self._keep)
        except WorktreeError as error:
            told.update(kept=True, error=error.message)
        value = (
            result.value if isinstance(result.value, dict) else {} if result.value is None else {"value": result.value}
        )
        ended(attempt, msgspec.structs.replace(result, value={**value, "worktree": told}))

    async def _git(self, function: Any, *arguments: Any) -> Any:
        import asyncio

        # Counted like a handler: git's processes are this worker's children, and nobody else's to end or reap.
        self._remains.handlers += 1
        try:
            return await asyncio.to_thread(function, *arguments)
        finally:
            self._remains.handlers -= 1

    def stop(self, attempt: Attempt, grace_s: float) -> None:
        """See `Executor`."""
        if attempt.key not in self._preparing:
            self._inner.stop(attempt, grace_s)

    def close(self) -> None:
        """See `Executor`."""
        self._inner.close()


def place_of(repository: Path, fleet: str) -> Path:
    """Where the worktrees of a fleet stand: beside the repository, so that nothing of it is in the way of its own tools."""
    return repository.parent / f"{repository.name}.worktrees" / fleet
