"""Raising generations and stop rules, adding report-only tasks, and allowing flat ones, after an evolution was seeded.

Nothing else can change: models that were scored, and children that were made, would mean something else. Each extension
is a sealed record that names what was in force before it, so that the lineage tells what was decided when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.run.checks import Findings, check_tasks
from cycleqd.search.config import Config, completed
from cycleqd.search.method import StopConfig
from cycleqd.storage import layout
from cycleqd.storage.formats import encode
from cycleqd.storage.frozen import differing_keys, extensions, parse_frozen, shown
from cycleqd.storage.objects import Store
from cycleqd.storage.results import Clock, Record, describe_run, need_record, need_result, sealed
from cycleqd.storage.staging import copy_task, find_task

METHOD_VERSION = 1

_STOPS = tuple(StopConfig.model_fields)


def extend(store: Store, config: Config, begin: Callable[[str], None]) -> Record | None:
    """Take up what the user's configuration raises or adds; the record, None where it changes nothing.

    Args:
        store: Objects of the evolution.
        config: The user's configuration.
        begin: Called with each new task before it is checked.

    Raises:
        InvalidInputError: it changes something that is fixed, lowers a number, or adds a task that does not work.
        ConflictError: the evolution is not seeded, or another process extends it now.
    """
    if not store.exists(layout.result(layout.SEED)):
        raise ConflictError(f"evolution '{config.name}' is not seeded yet: change its configuration and run it")
    data = store.get(layout.CONFIG)
    frozen = parse_frozen(store, data)
    whole = completed(config, frozen)
    added = [name for name, task in whole.tasks.items() if name not in frozen.tasks and task.report_only]
    if refused := [*_refused(whole, frozen, added)]:
        raise InvalidInputError("\n".join(refused))
    if not differing_keys(whole, frozen):
        return None
    _check(whole, added, begin)
    clock = Clock()
    tree, before = whole.frozen(), [*extensions(store, data)]
    flat_tasks = {"allow_flat_tasks": tree["evaluation"]["allow_flat_tasks"]}
    method = {key: tree["method"][key] for key in ("generations", "stop")}
    inputs = {
        "before": before[-1].sha256 if before else need_result(store, layout.SEED)["inputs"]["config"],
        "method": method,
        "tasks": {name: tree["tasks"][name] for name in added},
        "evaluation": flat_tasks,
        "was": {
            "method": {key: frozen.frozen()["method"][key] for key in method},
            "evaluation": {"allow_flat_tasks": frozen.evaluation.allow_flat_tasks},
        },
    }
    files = {name: copy_task(store, name, find_task(store.client, name, whole.tasks[name])) for name in added}
    folder = layout.extension(len(before) + 1)
    record = {"stage": "extend", "method_version": METHOD_VERSION, "inputs": inputs, "outputs": {"tasks": files}}
    store.put_json(layout.unlogged(folder), {})
    store.put(layout.run(folder), encode(describe_run(clock)))
    if not store.create(layout.result(folder), sealed(record)):
        raise ConflictError(f"another process has just extended evolution '{config.name}'; look, and try again")
    return need_record(store, folder)


def _refused(whole: Config, frozen: Config, added: Sequence[str]) -> Iterator[str]:
    """Why what differs cannot change, a sentence each."""
    new = tuple(f"tasks.{name}." for name in added)
    may = ["method.generations", *(f"method.stop.{name}" for name in _STOPS)]
    if whole.evaluation.allow_flat_tasks:
        may.append("evaluation.allow_flat_tasks")
    for key in differing_keys(whole, frozen):
        if key not in may and not key.startswith(new):
            yield (
                f"{key} cannot change after seeding, as models were scored or made by it: restore it, or give the"
                " evolution another name"
            )
    yield from _lowered("method.generations", whole.method.generations, frozen.method.generations)
    for name in _STOPS:
        yield from _lowered(f"method.stop.{name}", *(getattr(each.method.stop, name) for each in (whole, frozen)))


def _lowered(key: str, now: int | None, then: int | None) -> Iterator[str]:
    if now != then and now is not None and (then is None or now < then):
        yield f"{key} is {shown(then)} and can only be raised, not be set to {now}: to end earlier, stop the run"


def _check(whole: Config, added: Sequence[str], begin: Callable[[str], None]) -> None:
    """Refuse new tasks that do not work here."""
    findings = Findings()
    tasks = {name: whole.tasks[name] for name in added}
    check_tasks(whole.model_copy(update={"tasks": tasks}), findings, begin)
    if findings.problems:
        raise InvalidInputError("\n".join(findings.problems))
