"""Every instruction of a commit, a take and an ack is a crash point: each state that the store passes through heals."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from . import ptrace
from .history import judge
from .life import Life
from .points import stage
from .scenario import Scenario
from .stepped_scenarios import STEPPED_SCENARIOS
from .stepping import step_through
from .test_system_call_points import brief

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(bool(ptrace.why_not()), reason=ptrace.why_not())]


@pytest.mark.parametrize("scenario", brief(STEPPED_SCENARIOS), ids=lambda scenario: scenario.name)
def test_a_process_killed_at_any_instruction_leaves_a_store_that_heals(scenario: Scenario) -> None:
    with stage(scenario) as on:
        steps, verdicts = on.step()
    assert steps.states > 2, "the scenario must reach the stores it is about"
    complaints = [str(verdict) for verdict in verdicts if verdict.complaints]
    assert not complaints, "\n".join(complaints)


def by_struct(words: memoryview) -> None:
    struct.pack_into("<Q", words, 0, 160)


def by_cast(words: memoryview) -> None:
    words.cast("Q")[0] = 160


@pytest.mark.parametrize(("publish", "seen"), [(by_cast, [32, 160]), (by_struct, [32, 0, 160])])
def test_the_stepper_sees_each_value_that_a_word_ever_has(
    tmp_path: Path, publish: Callable[[memoryview], None], seen: list[int]
) -> None:
    """Why muster publishes with `memoryview.cast`: `struct.pack_into` shows a zero in between."""
    store, word = tmp_path / "store", tmp_path / "store" / "word"
    store.mkdir()
    word.write_bytes((32).to_bytes(8, "little"))

    def act(life: Life) -> None:
        with word.open("r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), 8))
        life.mark()
        publish(words)
        life.mark()

    states: list[int] = []
    step_through(act, store, tmp_path / "notes", lambda _: states.append(int.from_bytes(word.read_bytes(), "little")))
    assert states == seen


def test_a_commit_in_two_stores_is_found_out() -> None:
    """A toy that counts before it writes: between its two stores a death loses a record, and exactly those states complain."""

    def prepare(life: Life) -> None:
        life.store.mkdir()
        (life.store / "log").write_bytes(bytes(16))

    def act(life: Life) -> None:
        with (life.store / "log").open("r+b") as file:
            words = memoryview(mmap.mmap(file.fileno(), 16)).cast("Q")
        life.note("try", n=7, explicit=False)
        life.mark()
        words[0] = 1
        words[1] = 7
        life.mark()

    def mend(life: Life) -> None:
        count, n = struct.unpack("<QQ", (life.store / "log").read_bytes())
        if count:
            life.note("taken", n=n, seq=1, lane="", id=str(n), attempt=1, whole=True)
            life.note("finishing", n=n, how="ack")
        nothing = dict.fromkeys(
            ("letters", "tombstones", "unread", "again", "temporary", "hollow", "segments_more"), ()
        )
        life.note("settled", lane="", verdicts={}, **nothing)

    with stage(Scenario("toy", prepare, act, mend, judge)) as on:
        steps, verdicts = on.step()
    assert steps.states == 3
    assert [verdict.complaints for verdict in verdicts] == [(), (), ("whole: 0 comes from nowhere",), ()]
