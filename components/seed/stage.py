"""seed: copy base, experts, task data, plug-ins and the frozen configuration to S3, with their digests; open MLflow.

Everything later reads these copies only, so that an evolution does not change when a file of its author does.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from cycleqd.evaluation.engines import load_engine
from cycleqd.search import config as configuration
from cycleqd.search.config import Config
from cycleqd.search.records import JSON
from cycleqd.storage import layout
from cycleqd.storage.evolution import manifest_json
from cycleqd.storage.failures import recorded
from cycleqd.storage.frozen import adopt, frozen_bytes
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import look_up
from cycleqd.storage.results import Clock, once
from cycleqd.storage.settings import Settings
from cycleqd.storage.staging import copy_model, copy_operators, copy_task, fetch_operators, find_task, open_inputs
from cycleqd.tracking import unlogged

METHOD_VERSION = 1


def run(evolution: str, config: str, profile: str) -> None:
    """Copy an evolution's inputs to S3 and open its MLflow experiment. Costs nothing when it has been done.

    Args:
        evolution: Name of the evolution.
        config: Names the configuration in S3, with the paths as this machine knows them.
        profile: Names the place in S3.

    Raises:
        InvalidInputError: models do not fit together, or task data are missing.
        ConflictError: the evolution exists with another configuration.
    """
    settings = Settings.from_environment()
    store = Store.connect(settings, evolution)
    with recorded(store, "seed"), tempfile.TemporaryDirectory(prefix="cycleqd-operators-") as folder:
        tree = {**look_up(store, config), "place": look_up(store, profile)}
        wanted = adopt(store, configuration.parse(fetch_operators(store.client, tree, Path(folder)), "config"))
        frozen = store.find(layout.CONFIG) or frozen_bytes(wanted)
        inputs = {"config": hashlib.sha256(frozen).hexdigest()}

        def compute(clock: Clock) -> JSON:
            return copy_all(store, wanted, frozen, inputs, clock)

        models = once(store, layout.SEED, "seed", METHOD_VERSION, inputs, compute)["models"]
        made = [layout.stage(model, "make") for model in models]
        unlogged.catch_up(settings, store, wanted, [layout.SEED, *made])


def copy_all(store: Store, config: Config, frozen: bytes, inputs: JSON, clock: Clock) -> JSON:
    """Check everything, then copy it; digests and files of all that was copied.

    A copy that a killed run finished is not made again.

    Args:
        store: Objects of the evolution.
        config: The configuration that is being seeded.
        frozen: Bytes of config.json.
        inputs: What the copies' records name as their inputs, JSON.
        clock: Of the stage.
    """
    with clock.part("check"):
        opened = open_inputs(store.client, config)
        found = {name: find_task(store.client, name, task) for name, task in config.tasks.items()}
        if config.evaluation.engine != "auto":
            load_engine(config.evaluation.engine)
    copy_operators(store, config)
    if not store.create(layout.CONFIG, frozen):
        adopt(store, config)
    models: dict[str, JSON] = {}
    with clock.part("models"):
        for model in opened:

            def make(_: Clock, model: str = model) -> JSON:
                return {"checkpoint": manifest_json(copy_model(store, model, opened))}

            models[model] = once(store, layout.stage(model, "make"), "seed", METHOD_VERSION, inputs, make)["checkpoint"]
    with clock.part("tasks"):
        tasks = {name: copy_task(store, name, staged) for name, staged in found.items()}
    return {"models": models, "tasks": tasks}
