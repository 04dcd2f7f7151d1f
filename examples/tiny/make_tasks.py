"""Write the three tiny task sets in the formats of the real benchmarks.

    python -m examples.tiny.make_tasks OUT [--items N]

writes OUT/{code.jsonl, db.jsonl, os.json}: MBPP+ records, DBBench records and os-interaction records, which the real
evaluators judge; and OUT/copying.txt for the plug-in task of this example. Requests are drawn from the quarter that
`skills.held_out` keeps from training. Same seed, same bytes.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from cycleqd.evaluation.benchmarks.db.task import table_md5
from examples.tiny.skills import TEMPLATES, WORDS, Item, draw, held_out

ITEMS = 256  # sixteen of each template
TRIES = 1000  # draws without an unseen request after which a template has run out


def items(skill: str, count: int, rng: np.random.Generator) -> list[Item]:
    """`count` different held-out items, the templates in turn; a template that has run out of them is passed over."""
    found: dict[str, Item] = {}
    templates = list(range(len(TEMPLATES[skill])))
    while len(found) < count and templates:
        for template in list(templates):
            drawn = (draw(skill, template, rng) for _ in range(TRIES))
            fresh = next((item for item in drawn if held_out(item) and item.request not in found), None)
            if fresh is None:
                templates.remove(template)
            elif len(found) < count:
                found[fresh.request] = fresh
    if len(found) < count:
        raise SystemExit(f"the templates of {skill} give {len(found)} held-out requests: ask for no more items")
    return list(found.values())


def words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words."""
    return [WORDS[i] for i in rng.choice(len(WORDS), size=count, replace=False)]


def arguments(kind: str, rng: np.random.Generator) -> Any:
    """A value of x for a code item. "words W" is a text that often starts with W or holds it."""
    match kind.split():
        case ["number"]:
            return int(rng.integers(-30, 60))
        case ["list"]:
            return [int(i) for i in rng.integers(1, 12, size=int(rng.integers(4, 10)))]
        case ["text"]:
            return "".join(words(rng, 4))
        case ["texts"]:
            return words(rng, int(rng.integers(2, 5)))
        case ["words", word]:
            rest = words(rng, 2)
            return "".join([word, *rest] if rng.random() < 0.6 else [rest[0], word, rest[1]])
    raise ValueError(f"no arguments of kind {kind!r}")


def code_record(number: int, item: Item, rng: np.random.Generator) -> dict[str, Any]:
    """An MBPP+ record; the model is asked with `request`."""
    name = item.slots["f"]
    tests = [[arguments(item.kind, rng)] for _ in range(8)]
    return {
        "task_id": f"Tiny/{number}",
        "request": item.request,
        "prompt": f'"""\n{item.request}\n"""\n',
        "entry_point": name,
        "canonical_solution": f"def {name}(x):\n    return {item.solution}\n",
        "base_input": tests[:3],
        "plus_input": tests[3:],
        "atol": 0,
        "contract": "",
        "assertion": "",
    }


def db_record(number: int, item: Item, rng: np.random.Generator) -> dict[str, Any]:
    """A DBBench record: a table that every wrong statement is likely to read or change differently."""
    columns = sorted({item.slots[c] for c in "ab" if c in item.slots} | {"id"})
    columns += words(rng, 2) if len(columns) < 3 else []
    columns = list(dict.fromkeys(columns))
    values = [item.slots.get("v", "sun"), *words(rng, 3)]
    rows = [[values[int(i)] for i in rng.integers(len(values), size=len(columns))] for _ in range(8)]
    rows[int(rng.integers(8))] = [values[0]] * len(columns)
    with sqlite3.connect(":memory:") as database:
        names = ", ".join(f'"{c}" TEXT' for c in columns)
        database.execute(f'CREATE TABLE "{item.slots["t"]}" ({names})')
        database.executemany(f'INSERT INTO "{item.slots["t"]}" VALUES ({", ".join("?" * len(columns))})', rows)
        answer = database.execute(item.solution).fetchall()
        after = database.execute(f'SELECT * FROM "{item.slots["t"]}"').fetchall()
    verb = item.solution.split()[0]
    return {
        "description": item.request,
        "add_description": "",
        "type": [verb],
        "label": [str(cell) for row in answer for cell in row],
        "answer_md5": table_md5(after),
        "sql": {"query": item.solution},
        "table": {
            "table_name": item.slots["t"],
            "table_info": {"columns": [{"name": c, "type": "TEXT"} for c in columns], "rows": rows},
        },
    }


STATE = "find . -mindepth 1 -printf '%P %y %m\\n' | sort; find . -type f | sort | xargs -r md5sum"


def os_record(number: int, item: Item, rng: np.random.Generator) -> dict[str, Any]:
    """An os-interaction record with a state check: the reference command on the same files must leave the same."""
    lines = [*words(rng, 5), item.slots.get("v", "sun"), item.slots.get("v", "sun") + "light"]
    rng.shuffle(lines)
    files = {item.slots["f"]: lines} if "f" in item.slots else {}
    files["notes"] = words(rng, 3)
    make = "\n".join(f"printf '%s\\n' {' '.join(content)} > {name}" for name, content in files.items())
    there = "mkdir -p /srv/files && cd /srv/files"
    check = (
        f"cd /srv/files && found=$({STATE})\n"
        f"mkdir /tmp/expected && cd /tmp/expected\n{make}\n{item.solution}\nwanted=$({STATE})\n"
        '[ "$found" = "$wanted" ]'
    )
    return {
        "problem": [{"role": "user", "content": item.request}],
        "index": number,
        "config": {
            "config": {
                "description": item.request,
                "init_script": [["bash", f"{there}\n{make}"]],
                "start": ["bash", "cd /srv/files"],
                "check": [["bash", check]],
                "example_script": ["bash", item.solution],
            }
        },
    }


RECORDS = {"code": code_record, "db": db_record, "os": os_record}


def main(out: Path, count: int, seed: int) -> None:
    """Write the three files."""
    out.mkdir(parents=True, exist_ok=True)
    for index, (skill, record) in enumerate(RECORDS.items()):
        rng = np.random.default_rng([seed, index])
        records = [record(number, item, rng) for number, item in enumerate(items(skill, count, rng))]
        if skill == "os":
            text = json.dumps(records, indent=1) + "\n"
        else:
            text = "".join(json.dumps(one) + "\n" for one in records)
        (out / f"{skill}.{'json' if skill == 'os' else 'jsonl'}").write_text(text)
    rng = np.random.default_rng([seed, len(RECORDS)])
    (out / "copying.txt").write_text("".join(f"{' '.join(words(rng, 2 + n % 4))}\n" for n in range(count)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--seed", type=int, default=0)
    arguments_ = parser.parse_args()
    main(arguments_.out, arguments_.items, arguments_.seed)
