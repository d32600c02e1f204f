"""Globs of locks: what they mean, against a matcher of another kind, and exactly when two of them have a path in common."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster.core.globs import conflict, is_glob, normal
from muster.errors import UsageError

#: Small enough to list every path that matters, and a letter ("c") that no set of the patterns names.
ALPHABET = "abc"
SEGMENTS = ["".join(word) for length in (1, 2, 3) for word in product(ALPHABET, repeat=length)]


def expression(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression over "/seg/seg", by the words of the module's docstring and nothing of its code."""
    parts = []
    for segment in pattern.split("/"):
        if segment == "**":
            parts.append("(?:/[^/]+)*")
            continue
        text = re.sub(r"\*+", "[^/]*", re.sub(r"\?", "[^/]", segment.replace("[!", "[^/")))
        parts.append(f"/(?=[^/]){text}")
    return re.compile("".join(parts))


def fits(pattern: str, path: str) -> bool:
    return expression(pattern).fullmatch("/" + path) is not None


places = st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "[a-b]"])
segments = st.lists(places, min_size=1, max_size=3).map("".join)
patterns = st.lists(st.one_of(segments, st.just("**")), min_size=1, max_size=3).map("/".join).map(normal)
#: Two patterns of at most three segments of at most three places: whatever they have in common has a path of this size in common
#: per segment, and one of at most so many segments.
PATHS = [
    *SEGMENTS,
    *("/".join(pair) for pair in product(SEGMENTS, repeat=2)),
]


@settings(max_examples=150, deadline=None)
@given(segments, segments)
def test_two_segments_meet_exactly_if_one_of_all_words_fits_both(one: str, other: str) -> None:
    words = ["".join(word) for length in range(1, 7) for word in product(ALPHABET, repeat=length)]
    ours, theirs = expression(one), expression(other)
    common = next((word for word in words if ours.fullmatch(f"/{word}") and theirs.fullmatch(f"/{word}")), None)
    assert conflict(normal(one), normal(other)) == (common is not None), f"{one!r} and {other!r}: {common!r}"


@settings(max_examples=150, deadline=None)
@given(patterns, patterns)
def test_two_patterns_conflict_if_a_path_of_up_to_two_segments_fits_both(one: str, other: str) -> None:
    ours, theirs = expression(one), expression(other)
    common = next((path for path in PATHS if ours.fullmatch(f"/{path}") and theirs.fullmatch(f"/{path}")), None)
    if common is not None:
        assert conflict(one, other), f"{common!r} fits both {one!r} and {other!r}"


#: Each segment is one of few letters: then all paths of up to six segments can be listed, which is longer than any shortest common one.
coarse = st.lists(st.sampled_from(["a", "b", "*", "**", "?"]), min_size=1, max_size=3).map("/".join)
COARSE_PATHS = ["/".join(word) for length in range(1, 7) for word in product("abc", repeat=length)]


@settings(max_examples=120, deadline=None)
@given(coarse, coarse)
def test_paths_of_many_segments_conflict_exactly_if_one_of_all_paths_fits_both(one: str, other: str) -> None:
    ours, theirs = expression(one), expression(other)
    common = next((path for path in COARSE_PATHS if ours.fullmatch(f"/{path}") and theirs.fullmatch(f"/{path}")), None)
    assert conflict(one, other) == (common is not None), f"{one!r} and {other!r}: {common!r}"


@given(patterns, patterns)
def test_a_conflict_is_mutual_and_a_pattern_conflicts_with_itself(one: str, other: str) -> None:
    assert conflict(one, other) == conflict(other, one)
    assert conflict(one, one)


@settings(max_examples=120, deadline=None)
@given(patterns, st.sampled_from(PATHS))
def test_a_plain_name_conflicts_with_exactly_the_globs_that_it_fits(pattern: str, path: str) -> None:
    assert conflict(pattern, path) == fits(pattern, path)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("src/**", "src", True),
        ("src/**", "src/api/v1/x.py", True),
        ("src/", "src/api", True),
        ("src", "src/api", False),
        ("src/*.py", "src/api/x.py", False),
        ("src/**/test_*.py", "src/test_a.py", True),
        ("*.py", "*.md", False),
        ("a*b", "*ab*", True),
        ("src/**", "srcs", False),
        ("a/**/b", "a/b", True),
        ("[a-m]*", "[n-z]*", False),
        ("[!a]", "a", False),
        ("app/[[]id]/page.tsx", "app/[[]id]/page.tsx", True),
        ("x**y", "xaay", True),
        ("x**y", "xa/ay", False),
        ("**", "anything/at/all", True),
        ("/etc/**", "etc/**", False),
        ("./src//api", "src/api", True),
    ],
)
def test_examples_of_the_documentation(one: str, other: str, expected: bool) -> None:
    assert conflict(normal(one), normal(other)) is expected


@pytest.mark.parametrize(
    "text", ["", "/", ".", "a/../b", "[ab", "a/[b/c]", "[z-a]", "[!\0-\U0010ffff]", "x" * 513, "a\0b", None]
)
def test_what_is_no_name_is_refused_in_a_sentence(text: str | None) -> None:
    with pytest.raises(UsageError):
        normal(text)


def test_a_set_means_a_literal_bracket_or_star_where_it_stands_in_one() -> None:
    assert conflict(normal("[*]"), normal("*"))
    assert not conflict(normal("[*]"), normal("a"))
    assert conflict(normal("[]]"), normal("]"))
    assert is_glob("[*]")


def test_a_glob_that_would_take_long_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="places"):
        normal("*a" * 100)
    assert normal("a" * 500) == "a" * 500, "a plain name is compared in no time"
    assert not conflict(normal("*a" * 60 + "c"), normal("*b" * 60 + "d"))
