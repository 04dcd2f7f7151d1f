"""Make the data of three small skills: what the adapters are trained on, and the samples that the evolution scores.

    python -m examples.smollm2.make_skills OUT

The skills are the tiny demo's (examples/tiny/skills.py): a Python function, an SQL statement or a shell command, asked
for in a few words and answered in the benchmark's own form. OUT/train/{code,db,os}.jsonl holds requests and answers as
trl takes them; OUT/{code.jsonl,db.jsonl,os.json} the benchmarks' records, which the real evaluators judge. One in four
requests, by its hash, is kept for the latter: nothing that is scored was trained on. Same seed, same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from examples.tiny import make_tasks
from examples.tiny.skills import TEMPLATES, train_item

SCORED = 256  # samples of a skill, sixteen of each template


def main(out: Path, count: int, seed: int) -> None:
    """Write the training data and the samples.

    Args:
        out: Folder of the files; made if need be.
        count: Items of a skill to train on, drawn from all its templates.
        seed: Of every draw.
    """
    make_tasks.main(out, SCORED, seed)
    (out / "train").mkdir(exist_ok=True)
    for index, skill in enumerate(TEMPLATES):
        rng = np.random.default_rng([seed, len(make_tasks.RECORDS) + 1 + index])  # make_tasks draws from those before
        items = (train_item(skill, range(len(TEMPLATES[skill])), rng) for _ in range(count))
        lines = (conversation(item.request, item.answer) for item in items)
        (out / "train" / f"{skill}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def conversation(request: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """A request with its answer, in trl's prompt-completion form: the loss is the answer's alone.

    Args:
        request: What the user says.
        answer: What the model is to say.
    """
    return {
        "prompt": [{"role": "user", "content": request}],
        "completion": [{"role": "assistant", "content": answer}],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=320, help="of each skill, to train on (default 320)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.out, arguments.items, arguments.seed)
