"""cycleqd samples: prompts, replies and verdicts of one model on one task."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from components.shared import layout
from components.shared.store.objects import Store
from cycleqd.errors import InvalidInputError
from pipelines.cli.output import print_json, say
from pipelines.cli.session import session


def show(path: Path, model: str, task: str, split: str, outcome: str, limit: int, as_json: bool) -> None:
    with session(path) as opened:
        if task not in opened.config.tasks:
            raise InvalidInputError(f"there is no task '{task}'; the tasks are {', '.join(opened.config.tasks)}")
        if split not in ("search", "test"):
            raise InvalidInputError(f"--split is '{split}'; it is search or test")
        name = opened.model(model)
        found = read(opened.store, name, task, split)
    chosen = [sample for sample in found if not outcome or sample["outcome"] == outcome][: limit or None]
    if as_json:
        print_json(chosen)
        return
    passed = sum(sample["outcome"] == "passed" for sample in found)
    say(f"{name} on {task} ({split}): {passed} of {len(found)} passed")
    for sample in chosen:
        _print(sample)


def read(store: Store, model: str, task: str, split: str) -> list[dict[str, Any]]:
    """All per-sample results. Raises InvalidInputError when the model was not evaluated there."""
    key = f"{layout.evaluation(model, task, split)}/samples.jsonl.gz"
    data = store.find(key)
    if data is None:
        raise InvalidInputError(
            f"'{model}' has no results on the {split} split of '{task}' ({store.url(key)} is missing)"
        )
    return [json.loads(line) for line in gzip.decompress(data).decode().splitlines()]


def _print(sample: dict[str, Any]) -> None:
    say(f"\n── {sample['id']} ── {sample['outcome']}: {sample.get('reason', '')}")
    for message in sample.get("messages", []):
        say(f"[{message['role']}]\n{message['content']}")
