"""Whether the machine has room for more."""

from __future__ import annotations

import pytest

from muster.coordinator.admission import Room, room, verdict
from muster.core.spec import AdmitSpec

ADMIT = AdmitSpec(memory_bytes=100_000_000, load=4.0, fds=1000)
PLENTY = Room(10**9, 1.0, 10**6)


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (PLENTY, ""),
        (PLENTY._replace(memory_bytes=99_000_000), "99 MB of memory are free, and below 100 MB nothing new begins"),
        (PLENTY._replace(load_per_core=4.1), "the load is 4.1 per core, and above 4 nothing new begins"),
        (PLENTY._replace(fds=999), "999 file descriptors are free, and below 1,000 nothing new begins"),
        (Room(None, None, None), ""),
    ],
)
def test_below_a_floor_nothing_new_begins_and_the_sentence_has_the_figures(left, says):
    assert verdict(left, ADMIT, was_shut=False) == says


def test_a_door_that_was_shut_opens_only_when_there_is_clearly_room():
    just = PLENTY._replace(memory_bytes=110_000_000)
    assert verdict(just, ADMIT, was_shut=False) == ""
    assert verdict(just, ADMIT, was_shut=True)
    assert verdict(PLENTY, ADMIT, was_shut=True) == ""


def test_what_is_switched_off_is_not_looked_at():
    assert verdict(Room(0, 99.0, 0), AdmitSpec(memory_bytes=0, load=0.0, fds=0), was_shut=True) == ""


def test_this_machine_says_what_it_has_left():
    left = room()
    assert left.memory_bytes is not None
    assert left.memory_bytes > 0
    assert left.load_per_core is not None
