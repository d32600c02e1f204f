"""The keys of edges: whichever way they are derived, both ends hold the same."""

from __future__ import annotations

import hmac
import os

from hypothesis import given
from hypothesis import strategies as st

from muster.security.keys import PairRoot, pair_key, pair_keys


@given(root=st.binary(min_size=32, max_size=32), texts=st.lists(st.binary(max_size=300), max_size=4))
def test_a_prepared_root_makes_the_same_digests_as_the_standard_library(root: bytes, texts: list[bytes]) -> None:
    prepared = PairRoot(root)
    assert [prepared.digest(text) for text in texts] == [hmac.digest(root, text, "sha256") for text in texts]


@given(sender=st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True))
def test_the_key_that_a_sender_is_given_is_the_one_that_its_recipient_derives(sender: str) -> None:
    roots = {name: os.urandom(32) for name in ("alice", "bob")}
    given_keys = pair_keys({name: PairRoot(root) for name, root in roots.items()}, sender)
    assert given_keys == {name: pair_key(root, sender) for name, root in roots.items()}


def test_a_prepared_root_shows_no_key() -> None:
    root = b"\xaa" * 32
    assert "aa" * 4 not in repr(PairRoot(root)) and repr(root) not in repr(PairRoot(root))
