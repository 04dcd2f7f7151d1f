"""Judge right answers of the three small benchmarks, in a container as a pod has it: `python3 judge.py DATA`.

Prints the share that passed by benchmark, as JSON, or ends with what the stage says where it cannot run.
"""

import json
import sys
import tempfile
from pathlib import Path

from answers import code_answer, db_answer, os_answer

from cycleqd.errors import CycleQDError
from cycleqd.evaluation.benchmarks.code.task import CodeTask
from cycleqd.evaluation.benchmarks.db.task import DbTask
from cycleqd.evaluation.benchmarks.os.task import OsTask
from cycleqd.evaluation.scoring import refuse_unready
from cycleqd.evaluation.task import Episode, Task, Workspace

FILES = {"code": "code_small.jsonl", "db": "db_small.jsonl", "os": "os_small.json"}
NOT_IN_PODS = [7, 8, 9]  # they need a /proc of their own, or users


def share(task: Task, name: str, data: Path) -> float:
    """The fraction of the task's samples that pass when answered right."""
    samples = task.load(data / FILES[name])
    passed = 0
    for sample in samples:
        episode = task.start(sample)
        while episode.next(answer(name, episode)) is not None:
            pass
        passed += task.verdict(episode).passed
        episode.close()
    return passed / len(samples)


def answer(name: str, episode: Episode) -> str:
    """A right reply."""
    return {"code": code_answer, "db": db_answer}[name](episode.sample) if name != "os" else os_answer(episode)


def main(data: Path) -> None:
    """Judge the benchmarks on the records in the folder; print the shares as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tasks: dict[str, Task] = {
            "code": CodeTask({}, Workspace(Path(folder))),
            "db": DbTask({"judge": "rows", "max_rounds": 1}, Workspace(Path(folder))),
            "os": OsTask({"root": "host", "exclude": NOT_IN_PODS}, Workspace(Path(folder))),
        }
        refuse_unready(tasks)
        found = {}
        for name, task in tasks.items():
            with task:
                found[name] = share(task, name, data)
        print(json.dumps(found))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except CycleQDError as error:
        sys.exit(str(error))
