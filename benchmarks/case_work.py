"""Real work: the demo's analysis of the standard library through `muster run -j 2`, beside a plain pool of two processes."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from typing import Any

from benchmarks.case_run import carry_out
from benchmarks.effort import effort
from benchmarks.harness import Case, Contender, Figures, Goal, MeasureError
from benchmarks.processes import Crew
from benchmarks.setting import ROOT, muster_program, program_environment, scratch
from muster.supervise.tree import set_parent_death_signal

_EXAMPLES = ROOT / "examples"


def _analysis() -> Any:
    if str(_EXAMPLES) not in sys.path:
        sys.path.insert(0, str(_EXAMPLES))
    import stdlib_analysis

    return stdlib_analysis


def _files(analysis: Any) -> list[str]:
    return list(analysis.library_files())[: effort(None, 60)]


def _muster() -> Figures:
    files = _files(_analysis())
    with scratch() as directory:
        results = directory / "results.jsonl"
        env = {**program_environment(), "MUSTER_STORE_DIR": str(directory / "stores")}
        command = [muster_program(), "run", "-j", "2", "-q", "--cwd", str(_EXAMPLES), "--results", str(results)]
        command += ["--handler", "stdlib_analysis:analyse"]
        took_s = carry_out(command, env, "".join(f"{path}\n" for path in files).encode())[0]
        answers = [json.loads(line)["value"] for line in results.read_text().splitlines()]
    if sorted(answer["path"] for answer in answers) != files:
        raise MeasureError(f"{len(answers)} of {len(files)} files were analysed")
    return {"s": took_s}


def _pool() -> Figures:
    """From the start of the pool to its end, results in no order, as they come."""
    analysis = _analysis()
    files = _files(analysis)

    def work() -> float:
        began = time.perf_counter()
        with multiprocessing.get_context("fork").Pool(2, set_parent_death_signal, (signal.SIGKILL,)) as pool:
            answers = list(pool.imap_unordered(analysis.analyse, files))
        took_s = time.perf_counter() - began
        if sorted(answer["path"] for answer in answers) != files:
            raise MeasureError(f"{len(answers)} of {len(files)} files were analysed")
        return took_s

    with Crew() as crew:
        return {"s": crew.add(work).result()}


def cases() -> list[Case]:
    return [
        Case(
            "work",
            "the demo's analysis with two agents, beside a pool of two processes",
            [Contender("muster", _muster), Contender("process pool", _pool)],
            [Goal("s", "muster", "process pool", "<=", 1.1)],
            rounds=2,
        )
    ]
