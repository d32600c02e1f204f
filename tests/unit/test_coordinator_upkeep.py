"""What the coordinator does beside the turns: hooks' schedule, clean-up, sizes of workers."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.test_machine_recycling import restart
from tests.unit.test_machine_tasks import AT, submit
from tests.unit.test_machine_workers import exited, supervised

from muster.coordinator import events as ev
from muster.coordinator.cleaning import AGE_S_MIN, clean
from muster.coordinator.hooks import HookRunner
from muster.coordinator.lives import Past
from muster.coordinator.sizes import outgrown
from muster.coordinator.state import load, snapshot
from muster.coordinator.supervising import supervision_of
from muster.core.spec import FleetSpec, HookSpec
from muster.errors import ConfigError
from muster.fleet import config

# --------------------------------------------------------------------------- hooks


def hook(name: str, every_s: float) -> HookSpec:
    return HookSpec(name=name, command=("true",), every_s=every_s, timeout_s=1.0)


def test_a_hook_is_due_one_interval_after_the_fleet_began_or_after_its_last_end_also_for_a_new_coordinator() -> None:
    machine = supervised(1)
    spec = FleetSpec(name="f", store_id="", agents=(), hooks=(hook("a", 60.0),))

    def due_s(state: Any) -> float:
        shell: Any = SimpleNamespace(machine=SimpleNamespace(state=state))
        return HookRunner(Path("/nowhere"), spec, shell).due_s(spec.hooks[0])

    assert due_s(machine.state) == AT + 60
    machine.apply(ev.HookEnded(AT + 75, "a", "failed", "no disk"))
    assert due_s(machine.state) == AT + 75 + 60
    assert due_s(load(snapshot(machine.state))) == AT + 75 + 60
    assert supervision_of(machine.state, AT + 80)["hooks"] == {
        "a": {"outcome": "failed", "detail": "no disk", "runs": 1, "ago_s": 5.0}
    }


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ('command = ["true"]\nevery = "10ms"', "every"),
        ('command = ["true"]\ntimeout = 0', "timeout"),
        ("command = []", "command"),
        ('every = "1h"', "command"),
        ('command = ["true"]\ncwd = "nowhere"', "nowhere"),
        ('command = ["true"]\neverry = "1h"', "everry"),
    ],
)
def test_a_hook_that_cannot_run_is_refused_in_one_sentence(tmp_path: Path, keys: str, word: str) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f'[agents.a]\ncommand = ["true"]\n[hooks.h]\n{keys}\n')
    with pytest.raises(ConfigError) as refused:
        config.load(file, environ={})
    assert word in refused.value.message
    assert "hooks.h" in refused.value.message


def test_hooks_of_a_file_reach_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('[agents.a]\ncommand = ["true"]\n[hooks.h]\ncommand = ["sh", "-c", "x"]\nevery = "1m"\n')
    (found,) = config.load(file, environ={}).spec("").hooks
    assert found == HookSpec(name="h", command=("sh", "-c", "x"), every_s=60.0, timeout_s=300.0, cwd=str(tmp_path))


# --------------------------------------------------------------------------- clean-up


def test_clean_up_takes_what_nobody_can_need_and_nothing_else(tmp_path: Path) -> None:
    machine = supervised(3)
    submit(machine, 1, 2)
    exited(machine, "w-1")  # task 1 is on its second attempt
    machine.state.supervision.past_agents["gone"] = Past(0, 0)
    store, spool = tmp_path / "store", tmp_path / "spool"
    for folder in (store / "sockets", store / "keys", store / "coordinator", spool):
        folder.mkdir(parents=True)
    old = [
        spool / "1.1.out",
        spool / "1.1.err",
        store / "sockets" / "gone",
        store / "tmp-1-ab",
        store / "keys" / "tmp-2-cd",
    ]
    kept = [
        spool / "1.2.out",
        spool / "2.1.out",
        spool / "9.1.out",
        spool / "notes.txt",
        store / "sockets" / "w-1",
        store / "spec.json",
    ]
    for path in (*old, *kept):
        path.touch()
    now_s = os.stat(old[0]).st_mtime + AGE_S_MIN + 1
    assert clean(store, str(spool), machine.state, now_s - 60) == {}, (
        "a young file may belong to somebody who writes it"
    )
    assert clean(store, str(spool), machine.state, now_s) == {"outputs": 2, "sockets": 1, "temporary": 2}
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in kept)


def test_clean_up_of_a_store_that_is_going_away_is_no_error(tmp_path: Path) -> None:
    assert clean(tmp_path / "nowhere", str(tmp_path / "nor here"), supervised(1).state, 0.0) == {}


# --------------------------------------------------------------------------- sizes


def page(incarnation: int, pss_bytes: int) -> Any:
    return SimpleNamespace(incarnation=incarnation, pss_bytes=pss_bytes)


def test_a_worker_is_outgrown_by_the_memory_of_its_own_incarnation_and_told_once() -> None:
    machine = supervised(3, max_rss_bytes=100)
    pages = {"w-1": page(1, 101), "w-2": page(1, 100), "w-3": page(7, 999)}
    (fact,) = outgrown(machine.state, pages, AT)
    assert (fact.worker, fact.incarnation, fact.rss_bytes) == ("w-1", 1, 101)
    machine.apply(fact)
    assert list(outgrown(machine.state, pages, AT)) == []


def test_a_worker_without_a_bound_or_on_its_way_out_is_not_measured() -> None:
    assert list(outgrown(supervised(1).state, {"w-1": page(1, 1 << 40)}, AT)) == []
    machine = supervised(1, max_rss_bytes=1)
    restart(machine)
    assert list(outgrown(machine.state, {"w-1": page(1, 1 << 40)}, AT)) == []
