"""What one task did, in a few lines: scores as numbers, children and generations as Markdown, archives as HTML.

Read from stored records, for the page of a task in Kubeflow; nothing reads it again.
"""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cycleqd.search import operators
from cycleqd.search import state as states
from cycleqd.search.records import JSON, Child, average
from cycleqd.storage import layout
from cycleqd.storage.evolution import checkpoint_url, find_child, load_config, load_state, manifest_from, need_plan
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result

LARGEST = 10_000_000
"""Bytes of the largest page that is shown: Kubeflow sends it whole to the reader's browser."""


def scores(store: Store, models: Iterable[str], tasks: Sequence[str], split: str) -> dict[str, float]:
    """Scores and their standard errors by a name that says whose they are, as shares of 1.

    Args:
        store: Objects of the evolution.
        models: Ids of models that have these scores.
        tasks: Names of tasks.
        split: "search" or "test".
    """
    found = {}
    for model in models:
        for task in tasks:
            outputs = need_result(store, layout.evaluation(model, task, split))["outputs"]
            found[f"{model} {task}"] = float(outputs["score"])
            found[f"{model} {task} standard error"] = float(outputs["standard_error"])
    return found


def making(store: Store, children: Sequence[str]) -> str:
    """How children are made, as Markdown: a line each.

    Args:
        store: Objects of the evolution.
        children: Their ids.
    """
    planned = [find_child(store, name, layout.child_generation(name) or 0) for name in children]
    lines = [f"- **{child.id}**: {_parents(child)}; {_operators(child)}" for child in planned]
    return "\n".join([f"### {_title(planned[0].generation)}", *lines]) + "\n"


def generation(store: Store, number: int) -> str:
    """A generation as Markdown: each model's making, scores and archives; what is best now, and how full archives are.

    Args:
        store: Objects of the evolution.
        number: The generation, from 0; -1 is seeding. Its archives are updated.
    """
    config, state = load_config(store), load_state(store, number + 1)
    entered = need_result(store, layout.update(number))["outputs"]["entered"]
    made = {} if number < 0 else {child.id: child for child in need_plan(store, number).children}
    tasks = state.tasks
    rows = [["model", "made from (ω)", "by", *tasks, "average", "archives entered"]]
    for model, archives in entered.items():
        child = made.get(model)
        found = {task: need_result(store, layout.evaluation(model, task, "search"))["outputs"] for task in tasks}
        mean = average({task: outputs["score"] for task, outputs in found.items()})
        rows.append([
            model,
            _parents(child) if child else "",
            _operators(child) if child else "",
            *(_score(outputs) for outputs in found.values()),
            f"{100 * mean:.1f}",
            ", ".join(archives) or "none",
        ])  # fmt: skip
    best = states.best_average(state)
    bests = [f"{task} {line.model.id} ({100 * line.scores[task]:.1f})" for task, line in state.bests.items()]
    filled = [f"{one.quality} {len(one.elites)} of {one.grid.cells}" for one in state.archives]
    return (
        f"### {config.name}: {_title(number)}\n\nScores in percent on the search split, ± standard errors.\n\n"
        f"{_table(rows)}\n\n"
        f"- best on average: {best.model.id} ({100 * states.average(best.scores):.1f})\n"
        f"- best on a task: {', '.join(bests)}\n"
        f"- filled cells of archives: {', '.join(filled)}\n"
    )


def archives(store: Store, number: int) -> str:
    """The archives after a generation as a page that needs nothing but itself.

    Args:
        store: Objects of the evolution.
        number: The generation, from 0; -1 is seeding. Its archives are updated.
    """
    from cycleqd.report import heatmaps

    picture = base64.b64encode(heatmaps.archives(load_state(store, number + 1))).decode()
    title = html.escape(f"{store.evolution}: archives, {_title(number)}")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h3>{title}</h3>'
    return f'{head}<img alt="{title}" style="max-width:100%" src="data:image/png;base64,{picture}"></html>\n'


def report(store: Store) -> str:
    """The report as it is now, one page with its pictures; where it is too large to be shown, how to write it.

    Args:
        store: Objects of the evolution.
    """
    from cycleqd.report.collect import collect
    from cycleqd.report.render import write

    with tempfile.TemporaryDirectory(prefix="cycleqd-report-") as folder:
        page = write(collect(store), Path(folder)).read_text(encoding="utf-8")
    if len(page.encode()) <= LARGEST:
        return page
    name = html.escape(store.evolution)
    return f"<!doctype html><p>The report of {name} is too large to be shown here; `cycleqd report` writes it.\n"


def model(store: Store, chosen: bool) -> dict[str, str]:
    """Where the final model is, what identifies it, and what it is made of; the aggregate while nothing is chosen.

    Args:
        store: Objects of the evolution.
        chosen: Whether the final model was chosen, where that is done.
    """
    name = "final" if chosen or load_config(store).chosen is None else "aggregated"
    body = need_result(store, layout.stage(name, "make"))
    parts, outputs = body["inputs"]["models"], body["outputs"]
    form = next((form for form in ("full", "adapter") if form in outputs), "checkpoint")
    exported = {"full": layout.full, "adapter": layout.adapter}.get(form)
    own = checkpoint_url(store, name, manifest_from(outputs["checkpoint"]))
    return {
        "model": name,
        "evolution": store.evolution,
        "address": store.url(exported(name)) if exported else own,
        "sha256": outputs[form]["digest"],
        "parents": ", ".join(part["id"] for part in parts),
        "coefficients": ", ".join(f"{beta:.4g}" for beta in body["inputs"]["coefficients"]),
        "base_sha256": body["inputs"]["base"]["digest"],
    }


def _title(number: int) -> str:
    return "seeding" if number < 0 else f"generation {number:06d}"


def _parents(child: Child) -> str:
    return ", ".join(f"{ref.id} ({omega:.3f})" for ref, omega in zip(child.parents, child.omega, strict=True))


def _operators(child: Child) -> str:
    return f"{child.crossover['kind']}, {operators.describe(child.mutation)}"


def _score(outputs: JSON) -> str:
    return f"{100 * outputs['score']:.1f} ± {100 * outputs['standard_error']:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first its head; what would end a cell is escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
