"""Commands that tell themselves how often, and beside whom, they ran.

Every task has a file. A running attempt holds its lock, which the kernel takes away with the last process of the attempt's tree; an attempt
that finds it held notes "overlap" instead of running. Nothing of muster is asked.
"""

from __future__ import annotations

from collections import Counter

from tests.acceptance.place import Place

#: `witness.sh FOLDER SECONDS TASK`. The lock's descriptor is inherited: a child that outlives the shell keeps it held. Tenths of a second
#: by the task's number, so that agents do not keep step: somebody is always about to need a task.
_SCRIPT = """
exec 9>>"$1/$3"
if ! flock -n 9; then echo "overlap $MUSTER_ATTEMPT" >&9; exit 9; fi
echo "start $MUSTER_ATTEMPT" >&9
sleep "$2.$(( $3 % 10 ))"
echo "end $MUSTER_ATTEMPT" >&9
"""


class Witness:
    """The journals of one run's tasks."""

    def __init__(self, place: Place) -> None:
        self.folder = place.work / "journals"
        self.folder.mkdir()
        self._script = place.script("witness.sh", _SCRIPT)

    def command(self, seconds: int, task: str = "{}") -> list[str]:
        """What an agent is to run for a task, which is a number; it takes so many seconds, and up to another."""
        return ["sh", self._script, str(self.folder), str(seconds), task]

    def started(self) -> int:
        """How many tasks have begun at least once."""
        return sum(1 for _ in self.folder.iterdir())

    def assert_none_ran_beside_another(self, tasks: list[str], *, interrupted: bool) -> int:
        """Every task ran to its end, no attempt met a living one, none was started anew without need; how many were interrupted."""
        again = 0
        for task in tasks:
            text = (self.folder / task).read_text()
            words = Counter(line.split()[0] for line in text.splitlines())
            attempts = [line.split()[1] for line in text.splitlines() if line.startswith("start")]
            assert words["overlap"] == 0, f"task {task}: two attempts at once:\n{text}"
            assert len(set(attempts)) == len(attempts), f"task {task}: one attempt ran twice:\n{text}"
            assert words["end"] >= 1, f"task {task} never came to its end:\n{text}"
            if not interrupted:
                assert (words["start"], words["end"]) == (1, 1), f"task {task} ran again without need:\n{text}"
            again += words["start"] > 1
        return again
