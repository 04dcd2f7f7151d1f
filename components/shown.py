"""What a task shows on its page in Kubeflow: Metrics, Markdown, HTML, a Model. Beside the records, never read back.

An artifact is None where nobody looks at it: our own runner has no pages. The task's record is written by now, so that
nothing here makes the task fail: what cannot be shown is a warning in its log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cycleqd.storage.objects import Store


class Artifact(Protocol):
    """KFP's, as far as we use it. It is shown by its metadata, or by its file, of which KFP takes a copy."""

    path: str
    metadata: dict[str, Any]


def scores(metrics: Artifact | None, evolution: str, models: str, tasks: str, split: str) -> None:
    """Scores with their standard errors.

    Args:
        metrics: Where they are shown.
        evolution: Name of the evolution.
        models: JSON list of model ids.
        tasks: JSON list of names of tasks.
        split: "search" or "test".
    """
    if metrics is not None:
        with _shown("scores", evolution) as (brief, store):
            metrics.metadata |= brief.scores(store, json.loads(models), json.loads(tasks), split)


def making(summary: Artifact | None, evolution: str, children: Sequence[str]) -> None:
    """How children are made.

    Args:
        summary: Where it is shown, as Markdown.
        evolution: Name of the evolution.
        children: Loop items, one a child.
    """
    if summary is not None:
        with _shown("children", evolution) as (brief, store):
            names = [json.loads(item)["child"] for item in children]
            _write(summary, brief.making(store, names))


def update(archives: Artifact | None, summary: Artifact | None, evolution: str, generation: int) -> None:
    """The archives' heat maps, and the generation in a table.

    Args:
        archives: Where the heat maps are shown, as HTML.
        summary: Where the generation is shown, as Markdown.
        evolution: Name of the evolution.
        generation: The generation, from 0; -1 is seeding.
    """
    if summary is not None:
        with _shown("summary", evolution) as (brief, store):
            _write(summary, brief.generation(store, generation))
    if archives is not None:
        with _shown("archives", evolution) as (brief, store):
            _write(archives, brief.archives(store, generation))


def model(shown: Artifact | None, evolution: str, chosen: bool = False) -> None:
    """The final model, or the aggregate while nothing is chosen. Its address is metadata: KFP refuses it as the URI.

    Args:
        shown: Where it is shown, as a Model.
        evolution: Name of the evolution.
        chosen: Whether the final model was chosen, where that is done.
    """
    if shown is not None:
        with _shown("model", evolution) as (brief, store):
            facts = brief.model(store, chosen)
            shown.metadata |= facts
            _write(shown, json.dumps(facts, indent=1))


def report(page: Artifact | None, evolution: str) -> None:
    """The report.

    Args:
        page: Where it is shown, as HTML.
        evolution: Name of the evolution.
    """
    if page is not None:
        with _shown("report", evolution) as (brief, store):
            _write(page, brief.report(store))


def _write(artifact: Artifact, text: str) -> None:
    Path(artifact.path).write_text(text, encoding="utf-8")


@contextmanager
def _shown(what: str, evolution: str) -> Iterator[tuple[ModuleType, Store]]:
    """What is shown is told by `brief`, from the evolution's records."""
    try:
        from cycleqd.report import brief
        from cycleqd.storage.objects import Store
        from cycleqd.storage.settings import Settings

        yield brief, Store.connect(Settings.from_environment(), evolution)
    except Exception as error:
        print(f"warning: the {what} cannot be shown in Kubeflow: {type(error).__name__}: {error}", file=sys.stderr)
