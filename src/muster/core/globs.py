"""Names and globs of locks: what they mean, and whether two of them can mean the same path. Exact, and without looking at any file.

A name is segments between "/"; empty and "." segments count for nothing. In a segment `*` stands for any characters, `?` for one, and
`[abc]`, `[a-z]`, `[!a-z]` for one of a set; none of them stands for "/". A segment that is `**` stands for any number of segments, none
included, so `src/**` means `src` and everything below it; a final "/" is short for that. A literal `[` or `*` is written `[[]`, `[*]`.

Whether two patterns have a path in common is the emptiness of the intersection of two regular languages: walk both at once and ask whether
some pair of positions reaches both ends (Hopcroft and Ullman, "Introduction to Automata Theory", product construction). That is done on two
levels with one function, over the segments of paths and over the characters of segments; on each the "any number of" part is a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias, TypeVar

from muster.core import limits
from muster.errors import UsageError

#: What one place of a segment may be: code points as ranges, first and last included. An empty tuple is the loop of a `*`.
_Place: TypeAlias = tuple[tuple[int, int], ...]
#: A segment as its places; None is the loop of a `**`.
_Segment: TypeAlias = tuple[_Place, ...] | None

T = TypeVar("T")

_LAST = 0x10FFFF
_SLASH = ord("/")
_ANY: _Place = ((0, _SLASH - 1), (_SLASH + 1, _LAST))
_STAR: _Place = ()
_SPECIAL = frozenset("*?[")


def normal(text: object) -> str:
    """A name or glob in the form in which it is kept and compared.

    Raises:
        UsageError: It is empty, too long or too intricate, holds a NUL, a ".." segment, or a set that is open or backwards.
    """
    if not isinstance(text, str) or not text.strip("/"):
        raise UsageError(f"a lock needs a name or a glob, not {text!r:.60}")
    if len(text.encode(errors="surrogatepass")) > limits.LOCK_NAME_BYTES_MAX:
        raise UsageError(f"{text!r:.60}… is longer than the {limits.LOCK_NAME_BYTES_MAX} bytes of a lock's name")
    if "\0" in text:
        raise UsageError(f"{text!r:.60} holds a NUL, which no path can")
    segments = [segment for segment in _split(text) if segment not in ("", ".")]
    if not segments:
        raise UsageError(f"{text!r:.60} names nothing that could be locked")
    if ".." in segments:
        raise UsageError(f"{text!r:.60}: a lock's name cannot go up with '..'")
    if text.endswith("/") and segments[-1] != "**":
        segments.append("**")
    name = ("/" if text.startswith("/") else "") + "/".join(segments)
    places = sum(len(segment or ()) + 1 for segment in _compiled(name))
    if is_glob(name) and places > limits.LOCK_GLOB_PLACES_MAX:
        raise UsageError(f"{name!r:.60}… has more than the {limits.LOCK_GLOB_PLACES_MAX} places of a glob")
    return name


def is_glob(name: str) -> bool:
    """Whether a normal name stands for more than itself."""
    return not _SPECIAL.isdisjoint(name)


def conflict(one: str, other: str) -> bool:
    """Whether some path fits both of two normal names. A plain name fits itself only."""
    if one == other:
        return True
    if not is_glob(one) and not is_glob(other):
        return False
    # Absolute paths and names relative to nothing in particular are different things.
    if one.startswith("/") != other.startswith("/"):
        return False
    ours, theirs = _literal(one), _literal(other)
    if not ours.startswith(theirs) and not theirs.startswith(ours):
        return False  # most pairs end here
    return _meet(_compiled(one), _compiled(other), lambda segment: segment is None, _segments_meet)


@lru_cache(maxsize=4096)
def _literal(name: str) -> str:
    """What every path that fits begins with."""
    at = next((at for at, char in enumerate(name) if char in _SPECIAL), len(name))
    literal = name[:at]
    # A `**` may stand for nothing, and then the slash before it is not there either.
    return literal.rstrip("/") if name.startswith("**", at) else literal


def _split(text: str) -> list[str]:
    """Segments; a "/" within a set is refused, because it could fit nothing."""
    segments = text.split("/")
    for segment in segments:
        _places(segment)
    return segments


@lru_cache(maxsize=4096)
def _compiled(name: str) -> tuple[_Segment, ...]:
    return tuple(None if part == "**" else _places(part) for part in name.strip("/").split("/"))


@lru_cache(maxsize=4096)
def _places(segment: str) -> tuple[_Place, ...]:
    places: list[_Place] = []
    at = 0
    while at < len(segment):
        char = segment[at]
        if char == "[":
            place, at = _set(segment, at)
            places.append(place)
            continue
        if char != "*":
            places.append(_ANY if char == "?" else ((ord(char), ord(char)),))
        elif not places or places[-1] != _STAR:  # two loops in a row are one
            places.append(_STAR)
        at += 1
    return tuple(places)


def _set(segment: str, begin: int) -> tuple[_Place, int]:
    """The set that begins at `[`, and where it ends. A `]` that comes first is one of the set, as in POSIX."""
    at = begin + 1
    negated = segment[at : at + 1] == "!"
    at += negated
    end = segment.find("]", at + 1)
    if end < 0:
        raise UsageError(f"{segment!r:.60}: the set that '[' begins is not closed; a '[' itself is written '[[]'")
    ranges: list[tuple[int, int]] = []
    members = segment[at:end]
    place = 0
    while place < len(members):
        low = high = ord(members[place])
        if members[place + 1 : place + 2] == "-" and place + 2 < len(members):
            high = ord(members[place + 2])
            place += 2
        if low > high:
            raise UsageError(f"{segment!r:.60}: {chr(low)}-{chr(high)} is a range backwards")
        ranges.append((low, high))
        place += 1
    chosen = _without(_ANY, ranges) if negated else _common(_ANY, ranges)
    if not chosen:
        raise UsageError(f"{segment!r:.60}: the set fits no character")
    return chosen, end + 1


def _common(ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]) -> _Place:
    return tuple(
        (max(low, other_low), min(high, other_high))
        for low, high in ours
        for other_low, other_high in theirs
        if max(low, other_low) <= min(high, other_high)
    )


def _without(ours: _Place, theirs: list[tuple[int, int]]) -> _Place:
    for low, high in theirs:
        ours = _common(ours, ((0, low - 1), (high + 1, _LAST)))
    return ours


def _segments_meet(one: _Segment, other: _Segment) -> bool:
    assert one is not None
    assert other is not None
    # No segment is empty, and where two loops meet the character between them may be any: an empty meeting is never the only one.
    return _meet(one, other, lambda place: place == _STAR, lambda ours, theirs: bool(_common(ours, theirs)))


def _meet(one: Sequence[T], other: Sequence[T], is_loop: Callable[[T], bool], fit: Callable[[T, T], bool]) -> bool:
    """Whether some word fits both patterns: a loop takes any number of letters, everything else one that both sides allow."""
    height, width = len(one), len(other)
    # below[j]: whether one[i + 1:] and other[j:] have a word in common; computed from the ends.
    below = [False] * width + [True]
    for j in range(width - 1, -1, -1):
        below[j] = below[j + 1] and is_loop(other[j])
    for i in range(height - 1, -1, -1):
        row = [False] * (width + 1)
        loops = is_loop(one[i])
        row[width] = loops and below[width]
        for j in range(width - 1, -1, -1):
            if loops:  # it ends here, or takes one more letter; of another loop that is no letter but its end
                row[j] = below[j] or row[j + 1]
            elif is_loop(other[j]):
                row[j] = row[j + 1] or below[j]
            else:
                row[j] = below[j + 1] and fit(one[i], other[j])
        below = row
    return below[0]
