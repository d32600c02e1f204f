"""`muster recv --peek` and `muster ls`: what waits, and since when, without taking part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cli_world import a_world
from .quay import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with a_world(tmp_path) as world:
        yield Desk(world)


def peek(desk: Desk, *words: str) -> tuple[int, list[dict[str, Any]]]:
    done = desk.world.muster("recv", "--peek", "--json", "--fleet", "quay", "--as", "desk", *words)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def listed(desk: Desk, agent: str = "desk") -> dict[str, Any]:
    rows = json.loads(desk.world.muster("ls", "--json", "--fleet", "quay").stdout)
    row: dict[str, Any] = next(row for row in rows if row["agent"] == agent)
    return row


def test_peek_shows_what_waits_and_leaves_it_there(desk: Desk) -> None:
    assert peek(desk) == (1, [])
    boat = desk.bus("boat")
    for body in ("one", {"n": 2}):
        boat.post("desk", body, type="job")
    boat.post("desk", "first of all", priority="control")
    boat.transport.close()
    for _ in range(2):
        status, shown = peek(desk)
        assert status == 0
        assert [message["body"] for message in shown] == ["first of all", "one", {"n": 2}]
        assert {message["state"] for message in shown} == {"stored"}
    assert [message["body"] for message in peek(desk, "-n", "2")[1]] == ["first of all", "one"]
    human = desk.world.muster("recv", "--peek", "--fleet", "quay", "--as", "desk")
    assert human.stdout == 'boat: first of all\nboat: one\nboat: {"n": 2}\n'
    reader = desk.bus()
    attempts = [delivery.attempt for delivery in iter(reader.receive_nowait, None)]
    reader.transport.close()
    assert attempts == [1, 1, 1]


def test_peek_works_while_the_owner_lives_and_tells_what_it_has_in_hand(desk: Desk) -> None:
    boat, reader = desk.bus("boat"), desk.bus()
    for n in range(4):
        boat.post("desk", n)
    deliveries = [reader.receive_nowait() for _ in range(3)]
    assert deliveries[1] is not None
    deliveries[1].ack()
    assert [(message["body"], message["state"]) for message in peek(desk)[1]] == [
        (0, "taken"), (2, "taken"), (3, "stored"),
    ]  # fmt: skip
    reader.transport.close()
    boat.transport.close()


def test_peek_shows_nothing_that_is_not_signed(desk: Desk) -> None:
    boat = desk.bus("boat")
    boat.post("desk", "honest")
    boat.post("desk", "other")
    boat.transport.close()
    segment = next((desk.store / "agents/boat/outbox/desk").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"honest")] ^= 1
    segment.write_bytes(data)
    assert [message["body"] for message in peek(desk)[1]] == ["other"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--as", "nobody"), "nobody"),
        (("--as", "desk", "--wait", "1s"), "--wait"),
        (("--as", "desk", "-n", "few"), "few"),
    ],
)
def test_a_mistake_is_one_sentence(desk: Desk, words: tuple[str, ...], said: str) -> None:
    done = desk.world.muster("recv", "--peek", "--fleet", "quay", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert said in done.stderr
    assert not (desk.store / "agents/nobody").exists(), "looking made an agent"


def test_ls_tells_depth_age_and_dead_letters(desk: Desk) -> None:
    assert (listed(desk)["inbox_depth"], listed(desk)["oldest_age_s"], listed(desk)["dead"]) == (0, None, 0)
    desk.bury("a", "b")
    boat = desk.bus("boat")
    for n in range(3):
        boat.post("desk", n)
    boat.transport.close()
    reader = desk.bus()
    first, second = reader.receive_nowait(), reader.receive_nowait()
    assert first is not None
    assert second is not None
    second.ack()
    row = listed(desk)
    assert (row["inbox_depth"], row["dead"]) == (2, 2)
    assert row["oldest_age_s"] > 0
    oldest = row["oldest_age_s"]
    first.ack()
    assert listed(desk)["oldest_age_s"] < oldest + 60
    assert listed(desk)["inbox_depth"] == 1
    reader.transport.close()
    human = desk.world.muster("ls", "--fleet", "quay").stdout.splitlines()
    assert human[0].split() == ["AGENT", "STATE", "WAITING", "OLDEST", "DEAD"]
    assert desk.dead("redrive", "--all")[0] == 0
    assert (listed(desk)["inbox_depth"], listed(desk)["dead"]) == (3, 0)


def test_programs_that_joined_are_spoken_to_from_the_command_line(desk: Desk) -> None:
    assert desk.world.muster("send", "desk", "from a shell", "--fleet", "quay").returncode == 0
    assert desk.world.muster("recv", "--as", "desk", "--fleet", "quay").stdout == "operator: from a shell\n"
    assert desk.world.muster("status", "--fleet", "quay").stdout.startswith("quay is down")
    down = desk.world.muster("down", "--fleet", "quay")
    assert (down.returncode, down.stderr) == (1, "muster: the fleet 'quay' is not up\n")
