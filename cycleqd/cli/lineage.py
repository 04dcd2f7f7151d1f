"""cycleqd lineage: the family tree of a model, from the plans in S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text
from rich.tree import Tree

from cycleqd.cli.output import console, percent, plain, print_json
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.search.operators import describe
from cycleqd.search.records import Scores
from cycleqd.search.state import average
from cycleqd.storage.family import Family, family


def show(source: ConfigSource, model: str, as_json: bool) -> None:
    """Print a model and all its ancestors, with how each was made and its scores.

    Args:
        source: Files and flags that make the configuration.
        model: A model's id, or "best".
        as_json: Print JSON.
    """
    with session(source) as opened:
        state, name = opened.state(), opened.model(model)
        members = family(opened.store, [name])
    scores = {line.model.id: line.scores for line in state.history} | {"base": state.base.scores}
    if as_json:
        print_json({"model": name, "models": _to_json(members, scores)})
    else:
        console.print(_draw(name, members, scores))


def _to_json(members: Family, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The family as a table: id → parents with weights, mutation, scores."""
    return {
        name: {
            "parents": [{"id": parent, "weight": weight} for parent, weight in member.parents],
            "mutation": dict(member.mutation) if member.mutation else None,
            "scores": dict(scores.get(name, {})),
        }
        for name, member in members.items()
    }


def _draw(name: str, members: Family, scores: Mapping[str, Scores]) -> Tree:
    """The tree, parents below their child; a family that was drawn before is only named."""
    root = Tree(_label(name, members, scores))
    waiting, seen = [(root, name)], set()
    while waiting:
        branch, child = waiting.pop()
        if child in seen:
            continue
        seen.add(child)
        for parent, weight in members[child].parents:
            label = Text(f"{weight:+.3f} × ", style="dim").append_text(_label(parent, members, scores))
            again = members[parent].parents and (parent in seen or any(parent == other for _, other in waiting))
            leaf = branch.add(label.append("  (see elsewhere)", style="dim") if again else label)
            if not again:
                waiting.append((leaf, parent))
    return root


def _label(name: str, members: Family, scores: Mapping[str, Scores]) -> Text:
    text = Text(plain(name), style="bold")
    if name in scores:
        shown = "  ".join(f"{task} {percent(score)}" for task, score in scores[name].items())
        text.append(f"  {shown}  average {percent(average(scores[name]))}", style="not bold")
    mutation = members[name].mutation
    if mutation is not None:
        text.append(f"  mutation: {plain(describe(mutation))}", style="dim not bold")
    return text
