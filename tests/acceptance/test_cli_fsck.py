"""`muster fsck` and `muster retire` as a person calls them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cli_world import World, a_world
from .quay import Desk

FLEET = '[fleet]\nname = "dock"\ngrace = "3s"\n[agents.pilot]\ncount = 2\ncommand = ["true"]\n[agents.desk]\n'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path) as one:
        yield one


@pytest.fixture
def desk(world: World) -> Desk:
    return Desk(world)


def harm(desk: Desk) -> str:
    """Damage one of three stored messages; its id."""
    boat = desk.bus("boat")
    receipts = [boat.post("desk", text) for text in ("first", "second", "third")]
    boat.transport.close()
    (segment,) = (desk.store / "agents/boat/outbox/desk").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"second")] ^= 1
    segment.write_bytes(data)
    return receipts[1].id


@pytest.mark.timeout(120)
def test_a_living_fleet_is_clean_and_a_check_disturbs_nobody(world: World) -> None:
    (world.work / "fleet.toml").write_text(FLEET)
    assert world.muster("up", "-d").returncode == 0
    body = json.dumps({"tasks": [[number, "x"] for number in range(1, 41)]})
    assert world.muster("send", "coordinator", "-t", "task.submit", "--json-body", body).returncode == 0
    for _ in range(5):
        done = world.muster("fsck", "--repair")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert world.muster("status").returncode == 0
    assert world.muster("down").returncode == 0
    done = world.muster("fsck")
    assert (done.returncode, done.stdout) == (0, "dock: clean\n")


def test_a_loss_is_named_repaired_and_told_by_the_exit_status(desk: Desk) -> None:
    lost = harm(desk)
    found = desk.world.muster("fsck", "--fleet", "quay")
    assert found.returncode == 1
    assert "lost number 2" in found.stdout
    assert lost in found.stdout
    assert "--repair would" in found.stdout
    repaired = desk.world.muster("fsck", "--fleet", "quay", "--repair", "--json")
    assert repaired.returncode == 1, "damage was found, though it is repaired"
    (loss,) = (one for one in json.loads(repaired.stdout)["findings"] if one["severity"] == "loss")
    assert (loss["first"], loss["last"], loss["message_id"], loss["outcome"]) == (2, 2, lost, "repaired")
    again = desk.world.muster("fsck", "--fleet", "quay")
    assert again.returncode == 0, again.stdout
    reader = desk.bus()
    bodies = [delivery.body for delivery in iter(reader.receive_nowait, None)]
    assert bodies == ["first", "third"]
    reader.transport.close()


def test_what_a_living_process_holds_is_left_alone_and_said_so(desk: Desk) -> None:
    harm(desk)
    boat = desk.bus("boat")
    done = desk.world.muster("fsck", "--fleet", "quay", "--repair")
    assert done.returncode == 1
    assert f"left alone: process {os.getpid()} holds outbox.lock" in done.stdout
    boat.transport.close()


def test_names_in_a_store_cannot_control_the_terminal(desk: Desk) -> None:
    (desk.store / "agents/desk/inbox/\x1b[2J").write_text("")
    done = desk.world.muster("fsck", "--fleet", "quay")
    assert done.returncode == 0
    assert "does not belong" in done.stdout
    assert "\x1b" not in done.stdout


def test_retire_tells_what_became_of_the_messages(desk: Desk) -> None:
    boat = desk.bus("boat")
    boat.post("desk", "for it")
    boat.post("shelf", "by it")
    boat.transport.close()
    desk_bus = desk.bus()
    desk_bus.post("shelf", "by it")
    desk_bus.transport.close()
    done = desk.world.muster("retire", "desk", "--fleet", "quay", "--reason", "moved away")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "desk is retired; 1 message for it became dead letters",
        "1 message of its own still waits for shelf",
    ]
    assert [row["reason"] for row in desk.listed()] == ["moved away"]
    refused = desk.world.muster("send", "desk", "hello", "--fleet", "quay")
    assert refused.returncode == 2
    assert "desk" in refused.stderr
    status, out, _ = desk.dead("redrive", "--all")
    assert status == 1
    assert "not on the roster" in out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("retire",), 2, "NAME"),
        (("retire", "nobody", "--fleet", "quay"), 2, "nobody"),
        (("retire", "coordinator", "--fleet", "quay"), 2, "reserved"),
        (("retire", "a b", "--fleet", "quay"), 2, "a b"),
        (("fsck", "--fleet", "nobody"), 1, "nobody"),
        (("fsck", "--repare", "--fleet", "quay"), 2, "--repare"),
        (("fsck", "here", "--fleet", "quay"), 2, "here"),
    ],
)
def test_a_mistake_is_one_sentence(desk: Desk, words: tuple[str, ...], status: int, said: str) -> None:
    done = desk.world.muster(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
    assert said in done.stderr


def test_a_living_agent_is_not_retired(desk: Desk) -> None:
    reader = desk.bus()
    done = desk.world.muster("retire", "desk", "--fleet", "quay", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "bus.identity_busy"
    reader.transport.close()
