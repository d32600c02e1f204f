"""One git worktree per task, with a real git: made, found again, kept or removed by what is in it."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from muster.agent import worktree
from muster.errors import WorktreeError


def git(directory: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ("git", *who, *words), cwd=directory, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    top = tmp_path / "repo"
    top.mkdir()
    git(top, "init", "-q", "-b", "main")
    (top / "file").write_text("one\n")
    git(top, "add", "file")
    git(top, "commit", "-q", "-m", "first")
    return top


def make(repository: Path, number: int = 1) -> worktree.Worktree:
    return worktree.make(repository, repository.parent / "trees", "demo", number)


def leftovers(repository: Path) -> str:
    return git(repository, "worktree", "list", "--porcelain") + git(
        repository, "for-each-ref", "refs/heads/muster", "refs/muster"
    )


def test_a_worktree_stands_on_its_own_branch_at_the_commit_of_now(repository):
    tree = make(repository)
    assert (tree.path / "file").read_text() == "one\n"
    assert git(tree.path, "branch", "--show-current") == "muster/demo/task-1"
    assert tree.base == git(repository, "rev-parse", "main")
    assert not tree.has_work()


def test_one_without_work_leaves_no_trace(repository):
    before = leftovers(repository)
    tree = make(repository)
    assert tree.finish("changed") is False
    assert not tree.path.exists()
    assert leftovers(repository) == before


@pytest.mark.parametrize("work", ["a change", "a new file", "a commit"])
def test_one_with_work_is_kept(repository, work):
    tree = make(repository)
    (tree.path / ("file" if work == "a change" else "new")).write_text("two\n")
    if work == "a commit":
        git(tree.path, "add", "new")
        git(tree.path, "commit", "-q", "-m", "second")
    assert tree.finish("changed") is True
    assert tree.path.exists()
    assert make(repository).has_work(), "a retry finds the work of the attempt before it"


def test_ignored_files_are_no_work(repository):
    (repository / ".gitignore").write_text("*.pyc\n")
    git(repository, "add", ".gitignore")
    git(repository, "commit", "-q", "-m", "ignore")
    tree = make(repository)
    (tree.path / "x.pyc").write_text("")
    assert tree.finish("changed") is False


def test_policies_decide_over_the_work(repository):
    assert make(repository, 1).finish("always") is True
    tree = make(repository, 2)
    (tree.path / "new").write_text("x")
    assert tree.finish("never") is False
    assert not tree.path.exists()


def test_a_tree_that_was_deleted_by_hand_is_made_again_on_its_branch(repository):
    tree = make(repository)
    (tree.path / "new").write_text("x")
    git(tree.path, "add", "new")
    git(tree.path, "commit", "-q", "-m", "second")
    subprocess.run(("rm", "-r", str(tree.path)), check=True)
    again = make(repository)
    assert (again.path / "new").exists()
    assert again.has_work()


def test_commits_on_main_meanwhile_are_not_taken_for_work(repository):
    make(repository)
    git(repository, "commit", "-q", "--allow-empty", "-m", "meanwhile")
    assert not make(repository).has_work()


def test_twenty_at_once_are_all_made_and_all_removed(repository):
    before = leftovers(repository)
    with ThreadPoolExecutor(20) as pool:
        trees = list(pool.map(lambda number: make(repository, number), range(20)))
        assert len({tree.path for tree in trees}) == 20
        assert list(pool.map(lambda tree: tree.finish("changed"), trees)) == [False] * 20
    assert leftovers(repository) == before


def test_hooks_of_the_repository_are_not_run(repository):
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch ../hooked\n")
    hook.chmod(0o755)
    make(repository)
    assert not (repository.parent / "trees" / "hooked").exists()


def test_git_variables_of_the_caller_do_not_lead_it_astray(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert make(repository).path.exists()


def test_what_cannot_be_made_is_one_sentence(tmp_path, repository, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WorktreeError, match="is not in a git repository"):
        worktree.repository_of(empty)
    git(empty, "init", "-q")
    with pytest.raises(WorktreeError, match="has no commit yet"):
        worktree.repository_of(empty)
    with pytest.raises(WorktreeError, match="there is no directory"):
        worktree.repository_of(tmp_path / "nowhere")
    other = tmp_path / "trees" / "task-9"
    other.mkdir(parents=True)
    (other / "mine").write_text("x")
    with pytest.raises(WorktreeError, match="already exists"):
        make(repository, 9)
    assert (other / "mine").exists()
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(WorktreeError, match="there is no git"):
        worktree.repository_of(repository)
