"""Everything that can be checked before an evolution is run, each problem one sentence, all of them at once."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cycleqd.errors import CycleQDError, InvalidInputError, UnavailableError
from cycleqd.evaluation.engines import load_engine
from cycleqd.evaluation.task import load_task
from cycleqd.run.estimate import cells, planned_children
from cycleqd.search.algorithms import algorithm
from cycleqd.search.config import Config
from cycleqd.search.grid import is_flat
from cycleqd.search.operators.crossover import SpanCrossover
from cycleqd.search.state import State
from cycleqd.search.tasks import TaskConfig
from cycleqd.storage import layout
from cycleqd.storage.evolution import size_in_bytes
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.weights import lora
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.lora import LoraAdapter


@dataclass
class Findings:
    """Problems keep the evolution from running; warnings do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def collect(self, error: CycleQDError) -> None:
        """Note an error's lines as problems.

        Args:
            error: One that names several problems has a line for each.
        """
        self.problems += [line for line in str(error).splitlines() if line.strip()]


def check_method(config: Config) -> Iterator[str]:
    """What is allowed but unlikely to be meant.

    Args:
        config: The evolution's configuration.
    """
    method, budget = config.method, planned_children(config)
    for task, count in cells(config).items():
        if count > budget:
            yield (
                f"method.grid.bins: the archive of '{task}' has {count} cells, but only {budget} children are"
                " evaluated; use fewer bins or more generations"
            )
    for key, operator in method.operators.items():
        yield from (f"method.{key}.{clause}" for clause in operator.warnings())
    if method.stop.patience is not None and method.stop.patience < algorithm(config).period:
        yield f"method.stop.patience is {method.stop.patience}: less than one turn of all archives"


def decide(config: Config, store: Store | None, findings: Findings) -> Config:
    """The configuration with `models.weights` decided; as it is where the experts cannot be looked at.

    Args:
        config: As the user wrote it.
        store: For experts in S3; None where S3 cannot be reached.
        findings: Gets what is wrong.
    """
    from cycleqd.storage.inputs import decided

    if store is None and any(expert.path.startswith("s3://") for expert in config.models.experts.values()):
        return config
    try:
        return decided(config, store.client if store else None)
    except CycleQDError as error:
        findings.collect(error)
        return config


def check_seeded(config: Config, store: Store, findings: Findings) -> None:
    """What differs from what the evolution was seeded with, if it was.

    Args:
        config: As the user wrote it.
        store: The evolution.
        findings: Problems and warnings are added to it.
    """
    from cycleqd.storage.differences import differences
    from cycleqd.storage.frozen import adopt

    try:
        if store.exists(layout.CONFIG):
            findings.warnings += differences(store, config, adopt(store, config))
    except CycleQDError as error:
        findings.collect(error)


def check_models(config: Config, store: Store | None, findings: Findings) -> dict[str, Checkpoint | LoraAdapter]:
    """Open base and experts, and compare architecture, tokenizer, template, tensors, shapes and ranks.

    Args:
        config: The configuration, `models.weights` decided.
        store: For models in S3; None where S3 cannot be reached.
        findings: Gets what is wrong.

    Returns:
        By model id what could be opened, the base first.
    """
    from cycleqd.storage.inputs import find_source
    from cycleqd.storage.staging import given, open_expert
    from cycleqd.weights.checkpoint import open_checkpoint

    opened: dict[str, Checkpoint | LoraAdapter] = {}
    base: Checkpoint | None = None
    for model, path in given(config).items():
        if path.startswith("s3://") and store is None:
            continue  # that S3 cannot be reached is a problem already
        try:
            source = find_source(store.client if store else None, path)
            if model == "base":
                opened[model] = base = open_checkpoint(source)
            elif base is not None:
                opened[model] = open_expert(source, base)
        except CycleQDError as error:
            findings.collect(error)
    if base is not None:
        check_crossover(config, base, findings)
        gpus, heads = config.place.evaluate.gpu, base.setting("num_attention_heads")
        if gpus > 1 and heads and heads % gpus and config.evaluation.engine in ("auto", "vllm"):
            findings.problems.append(
                f"place.evaluate.gpu is {gpus}, and vLLM cannot divide the {heads} attention heads of {base.location}"
                " among so many GPUs; ask for as many as divide them"
            )
        try:
            _compare(config, base, [found for model, found in opened.items() if model != "base"], findings)
        except CycleQDError as error:  # a broken tokenizer file
            findings.collect(error)
    return opened


def _compare(config: Config, base: Checkpoint, experts: list[Checkpoint | LoraAdapter], findings: Findings) -> None:
    """Whether experts fit the base."""
    from cycleqd.storage.staging import too_wide, unprompted
    from cycleqd.weights import compatibility

    findings.problems += compatibility.problems(base, experts)
    findings.problems += unprompted(config, base, experts)
    findings.warnings += compatibility.warnings(base, experts)
    for expert in experts:
        if isinstance(expert, LoraAdapter):
            findings.warnings += lora.warnings(expert, config.models.base)
    if config.in_span and len(experts) == len(config.models.experts) and (wide := too_wide(config, base, experts)):
        findings.problems.append(wide)


def check_crossover(config: Config, base: Checkpoint, findings: Findings) -> None:
    """Have the crossover say its coefficients of every tensor: what it cannot do a child would meet after seeding.

    Args:
        config: The configuration.
        base: The base.
        findings: Gets what is wrong.
    """
    crossover, experts = config.method.crossover, len(config.models.experts)
    if isinstance(crossover, SpanCrossover):
        values = crossover.record(crossover.draw(experts, np.random.default_rng(0)))
        try:
            for tensor in base.tensors:
                crossover.coefficients(values, tensor)
        except InvalidInputError as error:
            findings.collect(error)


def check_tasks(config: Config, findings: Findings, begin: Callable[[str], None]) -> dict[str, dict[str, int]]:
    """The engine's class; every task's class, settings, data, splits and needs. The number of samples by split.

    Args:
        config: The evolution's configuration.
        findings: Problems and warnings are added to it.
        begin: Called with each task before it is checked.
    """
    found: dict[str, dict[str, int]] = {}
    if config.evaluation.engine != "auto":
        try:
            load_engine(config.evaluation.engine)
        except CycleQDError as error:
            findings.collect(error)
    for name, task in config.tasks.items():
        begin(f"task '{name}'")
        try:
            found[name] = _check_task(name, task, findings)
        except CycleQDError as error:
            findings.problems += [f"task '{name}': {line}" for line in str(error).splitlines()]
        except Exception as error:  # a plug-in is somebody else's code
            findings.problems.append(f"task '{name}': {type(error).__name__} in {task.class_}: {error}; correct it")
    return found


def check_server(config: Config) -> Iterator[str]:
    """What a server lacks to generate; that models fit one is decided with `models.weights`.

    Args:
        config: The configuration.
    """
    if config.evaluation.engine == "server" and not config.place.server.url:
        yield "evaluation.engine is server: say where it is (place.server.url)"


def _check_task(name: str, task: TaskConfig, findings: Findings) -> dict[str, int]:
    from cycleqd.evaluation.splits import choose
    from cycleqd.evaluation.task import Workspace

    with tempfile.TemporaryDirectory(prefix="cycleqd-validate-") as scratch:
        made = load_task(task.class_)(task.settings, Workspace(Path(scratch)))
        missing = made.preflight()
        findings.problems += [f"task '{name}': {sentence}" for sentence in missing]
        if task.data.startswith("s3://"):
            return {}
        path = Path(task.data)
        if not path.is_file() and not path.is_dir():
            found = "is neither a file nor a folder" if path.exists() else "is not there"
            findings.problems.append(f"task '{name}': {task.data} {found}; correct its data in the configuration")
            return {}
        try:
            samples = made.load(Path(task.data))
        except UnavailableError:
            if missing:  # then what the samples lack here follows from that
                return {}
            raise
        return {split: len(choose(samples, task.split, split)) for split in ("search", "test")}


def check_tracking(settings: Settings, findings: Findings) -> None:
    """Whether the MLflow server answers.

    Args:
        settings: The MLflow server's address is among them.
        findings: Problems and warnings are added to it.
    """
    if (silence := tracking_silence(settings.tracking, 30)) is not None:
        findings.problems.append(f"MLflow does not answer at {silence}; check MLFLOW_TRACKING_URI and the server")


def tracking_silence(url: str, seconds: float) -> str | None:
    """The address that an MLflow server does not answer at, and why; None when it answers.

    Args:
        url: The server's.
        seconds: How long an answer is waited for.
    """
    health = f"{url.rstrip('/')}/health"
    try:
        request = urllib.request.Request(health)
        if (shown := _authorization()) is not None:
            request.add_unredirected_header("Authorization", shown)
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            reply.read()
    except (OSError, ValueError) as error:
        return f"{health} ({error})"
    return None


def _authorization() -> str | None:
    """What MLflow's own client shows to a server, or to the proxy before it; None where it has nothing to show."""
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    user, password, token = (os.environ.get(name) for name in names)
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    return f"Bearer {token}" if token else None


def check_disk(config: Config, needed: int, findings: Findings) -> None:
    """Room for what is written on this machine: everything with embedded services, a few checkpoints otherwise.

    Args:
        config: The evolution's configuration.
        needed: Bytes.
        findings: Problems and warnings are added to it.
    """
    folder = Path(config.place.folder).resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        findings.problems.append(
            f"place.folder: {needed / 1e9:.1f} GB may be needed on the disk of {folder}, which has"
            f" {free / 1e9:.1f} GB free; use another disk or fewer bins"
        )


def check_cache(config: Config, swapped: int, findings: Findings) -> None:
    """Room for what is made there to be scored.

    Args:
        config: The evolution's configuration.
        swapped: Bytes of the full checkpoint that is made of a model; 0 where none is.
        findings: A problem is added to it.
    """
    if swapped > size_in_bytes(config.place.cache_size):
        findings.problems.append(
            f"place.cache_size is {config.place.cache_size}, and models.keep_dense makes a checkpoint of"
            f" {swapped / 1e9:.1f} GB there of every model that is scored; raise it (with room"
            " for base and full experts they are fetched once)"
        )


def flat_tasks(state: State) -> list[str]:
    """Warnings for tasks on which every expert scores the same: they give the search no information.

    Args:
        state: The current snapshot.
    """
    return [
        f"task '{task}': every expert scores {100 * state.experts[0].scores[task]:.1f} %,"
        " so it gives the search no information"
        for task in state.tasks
        if is_flat(task, state.experts)
    ]


def split_warnings(config: Config, samples: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Warnings for splits on which scores are too coarse to distinguish models.

    Args:
        config: The evolution's configuration.
        samples: Task → split → number of samples.
    """
    return [
        f"task '{task}': {counts['search']} search samples put a standard error of about"
        f" {100 * (0.25 / counts['search']) ** 0.5:.0f} points on every score; 200 give 4"
        for task, counts in samples.items()
        if task in config.search_tasks and counts and counts["search"] < 50
    ]
