"""Inputs without a coverage-guided engine: the corpus, and mutations of it that depend on nothing but their number.

The operators are the usual ones of mutation fuzzers (bit flips, interesting integers, blocks that are removed, doubled or spliced).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .target import Target

CORPUS = Path(__file__).parent / "corpus"
INPUT_BYTES_MAX = 64 << 10
_INTERESTING = (
    0, 1, 7, 8, 0x7F, 0x80, 0xFF, 240, 241, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 48) - 1, (1 << 63) - 1, (1 << 64) - 1,
)  # fmt: skip


def corpus(target: Target) -> list[bytes]:
    """The target's own seeds, then the files that were kept for it."""
    files = sorted((CORPUS / target.name).glob("*"))
    return [b"", *target.seeds(), *(path.read_bytes() for path in files)]


def mutated(target: Target, count: int, seed: object = 0) -> Iterator[tuple[int, bytes]]:
    """(index, input): the same ones for the same `seed`, whatever was tried before."""
    pool = corpus(target)
    for index in range(count):
        dice = random.Random(f"{target.name}/{seed}/{index}")
        data = bytearray(dice.choice(pool))
        for _ in range(dice.choice((1, 1, 2, 3, 6))):
            _mutate(data, dice, pool)
        yield index, bytes(data[:INPUT_BYTES_MAX])


def _mutate(data: bytearray, dice: random.Random, pool: list[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.choice((1, 2, 4, 8, 32, 256)))
    kind = dice.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << dice.randrange(8)
    elif kind == 1:
        width = dice.choice((1, 2, 4, 8))
        number = dice.choice(_INTERESTING) & ((1 << 8 * width) - 1)
        data[at : at + width] = number.to_bytes(width, dice.choice(("little", "big")))
    elif kind == 2:
        data[at:at] = dice.randbytes(dice.choice((1, 2, 4, 8, 40)))
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        data[at:at] = data[at:end] * dice.choice((1, 2, 16))
    elif kind == 5:
        del data[at:]
    else:
        other = dice.choice(pool)
        start = dice.randrange(len(other) + 1)
        data[at:end] = other[start : start + dice.choice((4, 16, 64, 1024))]
