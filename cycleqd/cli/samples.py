"""cycleqd samples: prompts, replies and verdicts of one model on one task."""

from __future__ import annotations

from typing import cast

from cycleqd.cli.output import print_json, say
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.evaluation.records import read_transcripts
from cycleqd.evaluation.staged import Split
from cycleqd.evaluation.task import Outcome
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.results import read_result


def show(source: ConfigSource, model: str, task: str, split: str, outcome: str, limit: int, as_json: bool) -> None:
    """Print a model's samples of a task.

    Args:
        source: Files and flags that make the configuration.
        model: A model's id, or "best".
        task: A task of the configuration.
        split: search or test.
        outcome: Only samples with this outcome; empty for any.
        limit: So many samples; 0 is all.
        as_json: Print JSON.

    Raises:
        InvalidInputError: There is no such split, outcome or task.
    """
    if split not in ("search", "test"):
        raise InvalidInputError(f"--split is '{split}'; it is search or test")
    if outcome and outcome not in list(Outcome):
        raise InvalidInputError(f"--outcome is '{outcome}'; it is one of {', '.join(Outcome)}")
    with session(source) as opened:
        if task not in opened.config.tasks:
            raise InvalidInputError(f"there is no task '{task}'; the tasks are {', '.join(opened.config.tasks)}")
        name = opened.model(model)
        found = _read(opened.store, name, task, cast(Split, split))
    chosen = [sample for sample in found if not outcome or sample["outcome"] == outcome][: limit or None]
    if as_json:
        print_json(chosen)
        return
    passed = sum(sample["outcome"] == "passed" for sample in found)
    say(f"{name} on {task} ({split}): {passed} of {len(found)} passed")
    for sample in chosen:
        _print(sample)


def _read(store: Store, model: str, task: str, split: Split) -> list[JSON]:
    """All per-sample results, with the seconds of the task's own work on each as far as they are known.

    Raises InvalidInputError when the model was not evaluated there.
    """
    folder = layout.evaluation(model, task, split)
    if read_result(store, folder) is None:
        raise InvalidInputError(
            f"'{model}' has no results on the {split} split of '{task}' ({store.url(folder)} has no result.json)"
        )
    seconds = (store.find_json(layout.run(folder)) or {}).get("sample_seconds", {})
    found = read_transcripts(store, model, task, split)
    return [sample | ({"seconds": seconds[sample["id"]]} if sample["id"] in seconds else {}) for sample in found]


def _print(sample: JSON) -> None:
    took = f" ({sample['seconds']:.2f} s)" if "seconds" in sample else ""
    say(f"\n── {sample['id']} ── {sample['outcome']}: {sample['reason']}{took}")
    for message in sample["messages"]:
        say(f"[{message['role']}]\n{message['content']}")
