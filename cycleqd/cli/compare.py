"""cycleqd compare: evolutions of one bucket, side by side."""

from __future__ import annotations

from typing import Any

from cycleqd.cli.output import percent, print_json, table
from cycleqd.cli.scores import scores_of
from cycleqd.cli.session import session
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import InvalidInputError
from cycleqd.run.steps import find_state
from cycleqd.search import measures
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.operators import describe
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.evolution import load_config
from cycleqd.storage.objects import Store
from cycleqd.storage.tuned import find_tuned

_FRACTIONS = (
    "best",
    "best_average",
    "worst_of_best",
    "coverage",
    "diversity",
    "naive",
    "aggregated",
    "final",
    "task_arithmetic",
)


def show(source: ConfigSource, names: list[str], as_json: bool) -> None:
    """Print a column an evolution, named by its name in the bucket, and a row a fact.

    Args:
        source: Files and flags that make the configuration.
        names: Evolutions in the configuration's bucket.
        as_json: Print JSON.
    """
    with session(source) as opened:
        found = {name: _gather(Store(opened.store.client, opened.store.bucket, name)) for name in names}
    if as_json:
        print_json(found)
        return
    keys = list(dict.fromkeys(key for facts in found.values() for key in facts))
    rows = ([key, *(_cell(key, facts.get(key)) for facts in found.values())] for key in keys)
    table("", ["", *found], rows, right=list(found))


def _gather(store: Store) -> dict[str, Any]:
    """An evolution in figures: method, measures, final model. Raises InvalidInputError when it does not exist."""
    if not store.exists(layout.CONFIG):
        raise InvalidInputError(f"there is no evolution '{store.evolution}' in s3://{store.bucket}")
    config, state = load_config(store), find_state(store)
    facts: dict[str, Any] = {**_method(config), "seed": config.seed}
    return facts if state is None else {**facts, **_figures(store, config, state)}


def _method(config: Config) -> dict[str, Any]:
    method = config.method
    focus = method.focus if isinstance(method.focus, str) else f"fixed {method.focus['fixed']}"
    operators = {key: describe(operator.record({})) for key, operator in method.operators.items()}
    return {"algorithm": method.algorithm, "focus": focus, **operators}


def _figures(store: Store, config: Config, state: State) -> dict[str, Any]:
    found = {
        (model, split): built.scores
        for model in (m for m in config.combined if m not in config.lambdas)
        for split in ("search", "test")
        if (built := scores_of(store, config, model, split)) is not None
    }
    averages = {f"{model}/{split} average": states.average(scores) for (model, split), scores in found.items()}
    tuned = find_tuned(store)
    for split in ("search", "test"):
        if tuned is not None and (built := scores_of(store, config, tuned, split)) is not None:
            averages[f"task_arithmetic/{split} average"] = states.average(built.scores)
    measured = measures.measure(state, naive=found.get(("naive", "search")))
    return {"generations": state.generation, **measured, **averages}


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{percent(value)} %" if key.split("/")[0] in _FRACTIONS else f"{value:.4g}"
    return str(value)
