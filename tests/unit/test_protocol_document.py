"""docs/protocol.md lists every message that exists, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from muster.core import orders, protocol

DOC = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def test_every_bus_message_is_in_the_document_and_no_other() -> None:
    section = DOC.split("## Over the bus")[1].split("## Between")[0]
    plain = {"task", "task.ended"}  # bodies of people's own making, no struct of ours
    assert set(re.findall(r"^\| `([a-z_.]+)`[ ,]", section, re.MULTILINE)) == set(protocol.TYPES) | plain


def test_every_control_message_is_in_the_document_and_no_other() -> None:
    section = DOC.split("## Between spawner and coordinator")[1].split("## Between")[0]
    names = {struct.__name__ for union in (orders.ToSpawner, orders.ToCoordinator) for struct in get_args(union)}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == names
