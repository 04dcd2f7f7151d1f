"""The stored score of one model on one task and split: what it depends on, and what is kept of it."""

from __future__ import annotations

import gzip
import hashlib
from io import BytesIO

from cycleqd.errors import ConflictError, IntegrityError
from cycleqd.evaluation.engines import Engine
from cycleqd.evaluation.evaluator import Evaluation
from cycleqd.evaluation.staged import Split, StagedTask
from cycleqd.outside import unpack
from cycleqd.search.config import Config, EvaluationConfig
from cycleqd.search.records import JSON, digest
from cycleqd.search.tasks import ChatConfig
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_head
from cycleqd.storage.formats import decode, encode
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, find_result, matches, need_result, read_result, write_result

METHOD_VERSION = 1
"""Raise when scores may change for the same replies and verdicts; a task has a version of its own."""

_AS_THEY_ARE = ChatConfig(reasoning=())
"""Conversations as the task has them, and whole replies: once there was no other way."""

NAME = "evaluate"
TRANSCRIPTS = "samples.jsonl.gz"


def inputs_of(config: Config, model: str, task: StagedTask, split: Split) -> JSON:
    """All that a score depends on and that is known before anything runs.

    Args:
        config: The evolution's configuration, of which the engine's settings count.
        model: The checkpoint's digest.
        task: The task.
        split: Which samples.
    """
    frozen = task.config.model_dump(mode="json", by_alias=True)
    return {
        "model": model,
        "task": task.name,
        "split": split,
        "class": frozen["class"],
        "task_version": task.kind.method_version,
        "settings": frozen["settings"],
        "samples": frozen["split"],
        "sampling": frozen["generation"],
        "data": task.files["data"]["digest"],
        "plugin": task.files["plugin"] and task.files["plugin"]["sha256"],
        "evaluation": _arithmetic(config.evaluation),
        **({"chat": frozen["chat"]} if task.config.chat != _AS_THEY_ARE else {}),
    }


def _arithmetic(section: EvaluationConfig) -> JSON:
    """What of the section replies depend on; an engine's own settings where there are any: once there were none."""
    found: JSON = section.model_dump(mode="json", exclude={"allow_flat_tasks", "engine_args"})
    return found | ({"engine_args": section.engine_args.given} if section.engine_args.given else {})


def due(store: Store, model: str, inputs: JSON) -> bool:
    """Whether a model is to be scored: not when it has a score for these inputs, or one that is in the archives.

    Args:
        store: The evolution's objects.
        model: The model's name.
        inputs: What the score would depend on (`inputs_of`).

    Raises:
        ConflictError: There are archives, and the base's scores, with which theirs were compared, are of another method
            version: the two must not be mixed.
    """
    task, split = inputs["task"], inputs["split"]
    found = read_result(store, layout.evaluation(model, task, split))
    if matches(found, NAME, METHOD_VERSION, inputs):
        return False
    head, number = find_head(store), layout.child_generation(model)
    if split == "test" or head is None:
        return True
    past = number is not None and number < head.snapshot
    if past and found is not None and found["inputs"]["model"] == inputs["model"]:
        return False
    base = read_result(store, layout.evaluation("base", task, split))
    now = (inputs["task_version"], METHOD_VERSION)
    then = now if base is None else (base["inputs"]["task_version"], base["method_version"])
    if now != then:
        raise ConflictError(
            f"task '{task}' is scored by method version {'.'.join(map(str, now))} now, and the base of {store.url('')}"
            f" was by {'.'.join(map(str, then))}, so scores cannot be compared; `cycleqd rescore` makes them anew"
        )
    return True


def read_transcripts(store: Store, model: str, task: str, split: Split) -> list[JSON]:
    """The transcripts of an evaluation, a record a sample.

    Args:
        store: The evolution's objects.
        model: The model's name.
        task: The task's name.
        split: Which samples.

    Raises:
        IntegrityError: They differ from the digest in the result.
    """
    folder = layout.evaluation(model, task, split)
    key = f"{folder}/{TRANSCRIPTS}"
    data = store.get(key)
    recorded, found = need_result(store, folder)["outputs"]["transcripts"]["sha256"], hashlib.sha256(data).hexdigest()
    if found != recorded:
        raise IntegrityError(
            f"{store.url(key)} has sha256 {found}, recorded was {recorded}; restore it, or delete its result.json to"
            " evaluate again"
        )
    return [decode(key, line, store.url(key)) for line in unpack(BytesIO(data)).splitlines()]


def write_evaluation(
    store: Store, model: str, task: StagedTask, inputs: JSON, found: Evaluation, engine: Engine, clock: Clock
) -> None:
    """Write the transcripts, run.json and the result, in this order; nothing where another process did meanwhile.

    The transcripts hold a line of JSON a sample, in sample order, and nothing that differs between identical runs.

    Args:
        store: The evolution's objects.
        model: The model's name.
        task: The task.
        inputs: What the score depends on (`inputs_of`).
        found: The evaluation.
        engine: The engine that generated the replies.
        clock: What measured it; gets the facts that only run.json has.
    """
    folder = layout.evaluation(model, task.name, inputs["split"])
    if find_result(store, folder, NAME, METHOD_VERSION, inputs) is not None:
        return
    lines = b"".join(encode(record.to_json()) + b"\n" for record in found.records)
    transcripts = gzip.compress(lines, mtime=0)
    store.put(f"{folder}/{TRANSCRIPTS}", transcripts)
    clock.seconds["generating"] = round(found.timings.generating, 4)
    clock.facts |= {
        "engine": engine.version,
        "rounds": found.timings.rounds,
        "tokens": found.tokens,
        "sample_seconds": {name: round(value, 4) for name, value in found.timings.samples.items()},
    }
    outputs = {
        "score": found.score,
        "standard_error": found.standard_error,
        "count": len(found.records),
        "counts": found.counts,
        "groups": found.groups,
        "verdicts": "".join("01"[record.outcome == "passed"] for record in found.records),
        "samples": digest([record.id for record in found.records]),
        "engine": engine.name,
        "reproducible": engine.reproducible,
        "transcripts": {"size": len(transcripts), "sha256": hashlib.sha256(transcripts).hexdigest()},
    }
    write_result(store, folder, NAME, METHOD_VERSION, inputs, outputs, clock)
