"""cycleqd models: every model that was scored, sorted."""

from __future__ import annotations

from typing import Any

from cycleqd.cli.output import percent, print_json, table
from cycleqd.cli.scores import scores_of
from cycleqd.cli.session import Session, session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State


def show(source: ConfigSource, sort: str, ascending: bool, limit: int, as_json: bool) -> None:
    """Print a table of the models.

    Args:
        source: Files and flags that make the configuration.
        sort: A task, average, generation or id.
        ascending: Lowest first.
        limit: So many rows; 0 is all.
        as_json: Print JSON.

    Raises:
        InvalidInputError: `sort` is none of these.
    """
    with session(source) as opened:
        config, state = opened.seeded(), opened.state()
        found = _rows(opened, config, state)
    keys = {"average", "generation", "id", *state.tasks}
    if sort not in keys:
        raise InvalidInputError(f"--sort {sort} is not one of {', '.join(sorted(keys))}")
    found.sort(key=lambda row: row["id"])
    found.sort(key=lambda row: row["scores"][sort] if sort in state.tasks else row[sort], reverse=not ascending)
    found = found[: limit or None]
    if as_json:
        print_json(found)
        return
    columns = ["model", "average", *state.tasks, "elite of", "stored"]
    table(
        "",
        columns,
        (
            [
                row["id"],
                percent(row["average"]),
                *(percent(row["scores"][task]) for task in state.tasks),
                ", ".join(row["elite_of"]),
                "yes" if row["stored"] else "no",
            ]
            for row in found
        ),
        right=columns[1:-2],
    )


def _rows(opened: Session, config: Config, state: State) -> list[dict[str, Any]]:
    """Base, experts, children, and final models if there are any; scores are those of the search split."""
    stored = {line.model.id for line in states.alive(config, state)}
    stored |= {"base", *config.combined, *(expert.model.id for expert in state.experts)}
    lines = [(states.SEEDING, state.base.model, state.base.scores)]
    lines += [(line.generation, line.model, line.scores) for line in state.history]
    for name in config.combined:
        built = scores_of(opened.store, config, name, "search")
        if built is not None:
            lines.append((state.generation, built.model, built.scores))
    return [
        {
            "id": model.id,
            "digest": model.digest,
            "generation": generation,
            "scores": dict(scores),
            "average": states.average(scores),
            "elite_of": list(states.homes(state, model.id)),
            "stored": model.id in stored,
        }
        for generation, model, scores in lines
    ]
