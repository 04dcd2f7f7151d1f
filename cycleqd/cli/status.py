"""cycleqd status: how far, how good, what is in flight."""

from __future__ import annotations

from typing import Any

from cycleqd.cli.display import summarise
from cycleqd.cli.output import percent, print_json, say, size, table
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.run.steps import find_state, next_step
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import find_plan
from cycleqd.storage.objects import Store
from cycleqd.tracking import unlogged


def show(source: ConfigSource, as_json: bool) -> None:
    """Print how far the evolution is; also when nothing of it has been seeded.

    Args:
        source: Files and flags that make the configuration.
        as_json: Print JSON.
    """
    with session(source) as opened:
        state = find_state(opened.store)
        config = opened.seeded() if state else opened.config
        facts = _gather(config, opened.store, state)
    if as_json:
        print_json(facts)
        return
    _tell(config, facts, source)


def _tell(config: Config, facts: dict[str, Any], source: ConfigSource) -> None:
    """Print what was gathered."""
    say(f"{facts['evolution']} at {facts['url']}: {facts['objects']} objects, {size(facts['bytes'])}")
    if facts["unlogged"]:
        missing = f"{facts['unlogged']} records are not in MLflow yet"
        say(f"{missing}; the next task logs them, or: cycleqd repair {source.flags}")
    if "generations" not in facts:
        say("not seeded yet; next: seeding" if not facts["started"] else "seeding is in flight")
        return
    done = "complete" if facts["next"] is None else f"next: {facts['next']}"
    of = f"{facts['generations']} of {config.method.generations} generations done"
    say(f"{of}, {facts['evaluations']} children; {done}")
    if facts["stopped"]:
        say(f"the search is over: {facts['stopped']}")
    rows = [[task, percent(best["score"]), best["model"]] for task, best in facts["best_per_task"].items()]
    best = facts["best_average"]
    table("", ["best", "score %", "model"], [*rows, ["average", percent(best["average"]), best["model"]]], ["score %"])
    for child in facts["in_flight"]:
        say(f"in flight: {child['child']}: {', '.join(child['done']) or 'planned'}")


def _gather(config: Config, store: Store, state: State | None) -> dict[str, Any]:
    """All that status prints, as JSON values."""
    objects = store.list("")
    facts: dict[str, Any] = {
        "evolution": config.name,
        "url": store.url(""),
        "objects": len(objects),
        "bytes": sum(objects.values()),
        "started": layout.CONFIG in objects,
        "unlogged": len(unlogged.pending(store)),
        "in_flight": [],
    }
    step = next_step(config, store, state)
    facts["next"] = step.name if step else None
    if state is not None:
        facts |= summarise(config, state)
        if states.should_stop(config, state) is None:
            facts["in_flight"] = _in_flight(store, state.generation)
    return facts


def _in_flight(store: Store, generation: int) -> list[dict[str, Any]]:
    """The children of a claimed generation that is not in the archives yet, with their finished stages."""
    plan = find_plan(store, generation)
    if plan is None:
        return []
    keys = store.list(layout.generation(generation))
    found = []
    for child in plan.children:
        home = f"{layout.home(child.id)}/"
        done = [key[len(home) : -len("/result.json")] for key in sorted(keys) if key.startswith(home)]
        found.append({"child": child.id, "done": [name for name in done if f"{home}{name}/result.json" in keys]})
    return found
