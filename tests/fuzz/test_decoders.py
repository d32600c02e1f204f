"""Whatever bytes a decoder meets: a typed error or a value, in bounded time and memory, and no descriptor left open.

The corpus and deterministic mutations of it; `make fuzz` goes on from there, guided by coverage.
"""

from __future__ import annotations

import os
import resource

import pytest

from . import target as target_module
from .mutations import CORPUS, corpus, mutated
from .target import BrokenClaimError, Target, holds
from .targets import TARGETS

MEMORY_GROWTH_KIB_MAX = 128 << 10


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_input_gives_a_value_or_a_typed_error(target: Target) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in corpus(target):
        target.execute(data)
    for index, data in mutated(target, target.mutations):
        try:
            target.execute(data)
        except BrokenClaimError as error:
            raise BrokenClaimError(f"mutation {index}: {error}") from error
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < MEMORY_GROWTH_KIB_MAX


def test_every_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda data: data[40], "IndexError"),
        (lambda data: holds(len(data) < 2, "at most one byte"), "at most one byte"),
        (lambda _data: LEFT_OPEN.append(os.open(os.devnull, os.O_RDONLY)), "1 descriptors stay open"),
    ],
    ids=["traceback", "claim", "descriptor"],
)
def test_a_decoder_that_breaks_its_claim_is_told_with_its_replay(broken, told: str) -> None:
    target = Target("broken", broken, lambda: [b"seed"])
    try:
        with pytest.raises(BrokenClaimError, match=rf"{told}(.|\n)*tests.fuzz broken --input c2VlZA=="):
            target.execute(b"seed")
    finally:
        while LEFT_OPEN:
            os.close(LEFT_OPEN.pop())


def test_a_decoder_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def for_ever(_data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(target_module, "CPU_S_MAX", 0.05)
    with pytest.raises(BrokenClaimError, match="processor time"):
        Target("endless", for_ever, lambda: [b""]).execute(b"")


LEFT_OPEN: list[int] = []
