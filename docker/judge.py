"""Judge right answers of both small benchmarks, in a container as a pod has it: `python3 judge.py DATA`.

Prints the share that passed by benchmark, as JSON, or ends with what the stage says where it cannot run.
"""

import json
import sys
import tempfile
from pathlib import Path

from answers import code_answer, db_answer

from components.evaluate.benchmarks.code import CodeTask
from components.evaluate.benchmarks.db import DbTask
from components.evaluate.stage import refuse_unready
from components.evaluate.task import Task, Workspace
from cycleqd.errors import CycleQDError

ANSWERS = {"code": code_answer, "db": db_answer}


def share(task: Task, name: str, data: Path) -> float:
    """The fraction of the task's samples that pass when answered right."""
    samples = task.load(data / f"{name}_small.jsonl")
    passed = 0
    for sample in samples:
        episode = task.start(sample)
        episode.next(ANSWERS[name](sample))
        passed += task.verdict(episode).passed
        episode.close()
    return passed / len(samples)


def main(data: Path) -> None:
    """Judge both benchmarks on the records in the folder; print the shares as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        tasks: dict[str, Task] = {
            "code": CodeTask({}, Workspace(Path(folder))),
            "db": DbTask({"judge": "rows", "max_rounds": 1}, Workspace(Path(folder))),
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
