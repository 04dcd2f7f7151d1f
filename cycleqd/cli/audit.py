"""cycleqd audit: the chain from a model back to the base and the experts, every digest verified."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from itertools import groupby
from typing import Any

from rich.text import Text

from cycleqd.cli.output import console, plain, print_json, say
from cycleqd.cli.progress import counting
from cycleqd.cli.session import Session, session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import IntegrityError, InvalidInputError
from cycleqd.run.audit import Audit, Link, Work, compare_tracking, resolve, trace, verify
from cycleqd.storage import layout
from cycleqd.storage.frozen import changes
from cycleqd.storage.objects import Store
from cycleqd.tracking.tracker import Tracker


def show(source: ConfigSource, name: str, as_json: bool) -> None:
    """Print the chain and what differs. Exits with IntegrityError's code when something does.

    Args:
        source: Files and flags that make the configuration.
        name: A model's id, "best", or the id of an MLflow run or a KFP run.
        as_json: Print JSON.
    """
    with session(source, tracking=True) as opened:
        tracker = Tracker(opened.settings)
        models = _find_models(opened, tracker, name)
        found = trace(opened.store, opened.seeded(), models, opened.config.place.pins)
        found.problems += compare_tracking(tracker, found.links)
        with counting("hashing objects", len(found.objects)) as advance:
            found.problems += verify(opened.store, found.objects, advance)
        if as_json:
            print_json(_to_json(opened.store, models, found))
        else:
            _print(opened.store, found)
    if found.problems:
        sys.exit(IntegrityError.exit_code)


def _find_models(opened: Session, tracker: Tracker, name: str) -> list[str]:
    """The models that a model's id, "best", an MLflow run's id or a KFP run's id names.

    Raises InvalidInputError for an unknown id.
    """
    models = [opened.model(model) for model in resolve(opened.store, tracker, name)]
    if not models:
        raise InvalidInputError(
            f"no model of '{opened.config.name}' was made by a KFP run {name} or has an MLflow run of that id;"
            " `cycleqd models` lists the models"
        )
    return models


def _to_json(store: Store, models: list[str], found: Audit) -> dict[str, Any]:
    """All that was found; `objects` are keys below `url` with the sha256 that was recorded."""
    return {
        "models": models,
        "url": store.url(""),
        "chain": [_link_json(link) for link in found.links],
        "collected": [link.model for link in found.links if not link.stored],
        "objects": found.objects,
        "extensions": [list(changes(extension)) for extension in found.extensions],
        "problems": found.problems,
    }


def _link_json(link: Link) -> dict[str, Any]:
    work = [{**dataclasses.asdict(done), "reads": done.reads(), "writes": done.writes()} for done in link.work]
    return {**dataclasses.asdict(link), "work": work}


def _print(store: Store, found: Audit) -> None:
    say(f"configuration {store.url(layout.CONFIG)}, sha256 {found.objects[layout.CONFIG]}")
    for number, extension in enumerate(found.extensions, start=1):
        what = "; ".join(changes(extension))
        say(f"extension {number}: {what}; record {_short(extension.sha256)}")
    for key, sha256 in found.objects.items():
        for folder, what in (("operators/", "operator"), ("engines/", "engine")):
            if key.startswith(folder):
                say(f"{what} {store.url(key)}, sha256 {sha256}")
    for link in found.links:
        _print_link(link)
    say(f"{len(found.objects)} objects of {store.url('')} hashed")
    for problem in found.problems:
        console.print(Text("problem: ", style="red").append(plain(problem), style="default"))
    say(f"{len(found.problems)} problems" if found.problems else "every digest is as recorded")


def _print_link(link: Link) -> None:
    """A model, then its stages in the order of time, those that ran in one place together."""
    console.print(Text(link.model, style="bold").append(f"  digest {link.digest}", style="not bold"))
    if link.parents:
        say("  from " + ", ".join(f"{weight:+.3f} × {parent}" for parent, weight in link.parents))
    if not link.stored:
        say(f"  its checkpoint was removed, as nothing needs it: `cycleqd replay {link.model}` rebuilds it")
    say(f"  MLflow run {link.mlflow_run}")
    for place, work in groupby(sorted(link.work, key=lambda done: done.where["finished"] or 0), key=_place):
        say(f"  {place}")
        for done in work:
            say(f"    {_line(done)}")


def _place(done: Work) -> str:
    """KFP run, image and code of a stage's work."""
    where = done.where
    image = where["image"] or f"no image (host {where['host']})"
    pinned = "" if "@" in image or not where["image"] else " (a tag, not a digest)"
    return f"KFP run {where['kfp_run'] or '–'}, {image}{pinned}, code {where['code_version']}"


def _line(done: Work) -> str:
    """A stage's work: when and where, what it read and wrote."""
    ended = datetime.datetime.fromtimestamp((done.where["finished"] or 0) / 1000, datetime.UTC)
    pod = f" in {done.where['kfp_pod']}" if done.where["kfp_pod"] else ""
    read = ", ".join(f"{name} {_short(sha256)}" for name, sha256 in done.reads().items())
    wrote = ", ".join(f"{name} {_short(sha256)}" for name, sha256 in done.writes().items())
    what = f"{done.stage} {done.inputs['task']} ({done.inputs['split']})" if done.stage == "evaluate" else done.stage
    return f"{ended:%Y-%m-%d %H:%M} {what}{pod}: {read} → {wrote}; record {_short(done.sha256)}"


def _short(sha256: str) -> str:
    return sha256[:12]
