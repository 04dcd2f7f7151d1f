"""One evolution as one validated tree. Unknown keys are errors; the method is separate from the place it runs in.

`name`, `seed`, `models`, `tasks`, `evaluation` and `method` decide the results: they are frozen at seeding.
`place` decides where and how the work is done, and may change between runs of the same evolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cycleqd.errors import InvalidInputError
from cycleqd.loading import is_file
from cycleqd.outside import YAML_BYTES, parse_yaml, read_file, yaml_lines
from cycleqd.search.algorithms import algorithm
from cycleqd.search.engine_args import ReplyArgs
from cycleqd.search.experts import Models
from cycleqd.search.fields import Name, Plugin, Section, stored, stored_by_content
from cycleqd.search.method import Method
from cycleqd.search.operators import Operator
from cycleqd.search.place import Place
from cycleqd.search.refusals import sentences
from cycleqd.search.tasks import TaskConfig

LAMBDA = "lambda-"
"""How the ids of task arithmetic begin; λ follows."""

S = TypeVar("S", bound=Section)
M = TypeVar("M", bound=BaseModel)


class EvaluationConfig(Section):
    """How scores are measured: engine, arithmetic and batches are part of what a score means."""

    engine: Plugin = "auto"
    """The inference engine: `transformers`, `vllm`, `server` (that of `place.server`), your own (`file.py:Class` or
    `package.module:Class`), or `auto`: vLLM on a CUDA device, transformers elsewhere."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of inference; `auto` is the checkpoint's own dtype."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of a batch: rows × (longest prompt + longest reply)."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the engine. On a machine that others use, 1 is fastest."""
    max_context: int | None = Field(default=None, ge=16)
    """Longest context in tokens; empty: the model's own."""
    engine_args: ReplyArgs = ReplyArgs()
    """vLLM's own settings that change replies, for the engines `vllm` and `server`."""
    allow_flat_tasks: bool = False
    """Go on although every expert scores 0 on a task, which then cannot guide the search."""

    @model_validator(mode="after")
    def _engine_takes_its_settings(self) -> EvaluationConfig:
        if self.engine_args.given and self.engine in ("auto", "transformers"):
            raise ValueError(
                f"engine_args are settings of vLLM, and the engine is {self.engine}: make it vllm or server, or leave"
                f" {', '.join(self.engine_args.given)} out"
            )
        return self

    @property
    def stored_engine(self) -> str:
        """The engine that is frozen: a user's own file is stored by its sha256."""
        return stored_by_content(self.engine, "engines")


class Config(Section):
    """One evolution."""

    name: Name
    """The evolution's name: its prefix in the bucket and its experiment in MLflow."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw of the search; replicates of an evolution differ in it."""
    models: Models
    """Base and experts."""
    tasks: dict[Name, TaskConfig] = Field(min_length=2)
    """What models are scored on, by a name of your choice; at least two take part in the search."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How scores are measured."""
    method: Method = Field(default_factory=Method)
    """What is computed."""
    place: Place = Place()
    """Where it runs."""

    @property
    def search_tasks(self) -> tuple[str, ...]:
        """The K tasks of the archives, in the order of the file."""
        return tuple(name for name, task in self.tasks.items() if not task.report_only)

    @property
    def in_span(self) -> bool:
        """Whether models are cores in the span of low-rank experts; `auto` is decided before seeding."""
        return self.models.weights == "span"

    @property
    def fused(self) -> bool:
        """Whether children are large: each one is then merged and mutated in one task of its own.

        Raises:
            InvalidInputError: nothing has decided it.
        """
        if self.in_span:
            return False
        if self.place.fused == "auto":
            raise InvalidInputError(
                "whether children are large cannot be told, as models.base cannot be read here; set place.fused (true"
                " above 1 GB a checkpoint)"
            )
        return self.place.fused

    @property
    def evaluated_apart(self) -> bool:
        """Whether each model is evaluated by tasks of its own: large ones are, but for `group: generation`."""
        group = self.place.group
        return group != "generation" and (self.fused or (group == "child" and not self.in_span))

    @property
    def extracted(self) -> tuple[str, ...]:
        """Ids of the full checkpoints that adapters are extracted from: the best expert to beat is one of them."""
        return tuple(f"source-{name}" for name, expert in self.models.experts.items() if expert.rank is not None)

    @property
    def combined(self) -> tuple[str, ...]:
        """Ids of the models that finalising builds. The aggregate is the final model, or is built beside it."""
        made = ("naive", "final") if self.method.final.makes == "aggregate" else ("naive", "aggregated", "final")
        return (*made, *self.lambdas)

    @property
    def lambdas(self) -> dict[str, float]:
        """The task arithmetic that the final model is compared with: id of the model → λ."""
        return {f"{LAMBDA}{value:g}": value for value in self.method.baselines.task_arithmetic}

    @property
    def chosen(self) -> str | None:
        """The combined model that is built only once the aggregate has a score; None where nothing is chosen."""
        return "final" if self.method.final.makes == "either" else None

    @property
    def own_files(self) -> dict[str, str]:
        """The files of a user's own operators and engine: the key that seeding stores each at, and where it is now."""
        found = {operator.stored: operator.kind for operator in self.method.operators.values() if operator.file}
        if is_file(self.evaluation.engine):
            found[self.evaluation.stored_engine] = self.evaluation.engine
        return {key.rpartition(":")[0]: plugin.rpartition(":")[0] for key, plugin in found.items()}

    def frozen(self) -> dict[str, Any]:
        """All that decides results, as JSON. Paths become the keys at which seeding stores what they name.

        So moving a folder changes nothing; what the files hold is identified by the digests in the seed's result.
        """
        tree = self.model_dump(mode="json", by_alias=True, exclude={"place"})
        tree["models"]["base"] = "models/base/checkpoint"
        for name, expert in tree["models"]["experts"].items():
            expert["path"] = f"models/expert-{name}/checkpoint"
        for name, task in tree["tasks"].items():
            task["data"] = f"tasks/{name}/data/{task['data'].rstrip('/').rsplit('/', 1)[-1]}"
            task["class"] = stored(task["class"], f"tasks/{name}/plugin.py")
        tree["evaluation"]["engine"] = self.evaluation.stored_engine
        for key, operator in self.method.operators.items():
            tree["method"][key]["kind"] = operator.stored
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        search = self.search_tasks
        if len(search) < 2:
            raise ValueError(f"at least two tasks must take part in the search, found {list(search)}")
        for name, expert in self.models.experts.items():
            if expert.task not in search:
                raise ValueError(f"expert '{name}' names task '{expert.task}', but the search tasks are {list(search)}")
        for task in search:
            if not any(expert.task == task for expert in self.models.experts.values()):
                raise ValueError(f"task '{task}' has no expert: give one, or mark the task report_only")
        grid, focus = self.method.grid, self.method.focus
        for label, per_task in (("bins", grid.bins), ("bounds", grid.bounds)):
            if isinstance(per_task, dict) and set(per_task) != set(search):
                raise ValueError(
                    f"method.grid.{label} must name exactly the search tasks {list(search)}, not {sorted(per_task)}"
                )
        if isinstance(focus, dict) and focus["fixed"] not in search:
            raise ValueError(f"method.focus.fixed is '{focus['fixed']}', but the search tasks are {list(search)}")
        if wrong := list(algorithm(self).problems()):
            raise ValueError("; ".join(wrong))
        return self


def load(path: Path, profile: Path | None = None) -> Config:
    """Read a configuration.

    Args:
        path: A YAML (or JSON) file. Relative paths in it are taken from its own folder.
        profile: A YAML file of `place`'s keys that are laid over the configuration's: sections of it key by key, values
            and lists as a whole.

    Raises:
        InvalidInputError: a file cannot be read or is not valid; one sentence a problem.
    """
    tree, text = _read(path)
    if isinstance(tree, dict):
        tree.setdefault("place", {})  # so that the default folder, too, is relative to the file
    config = _validated(Config, tree, str(path), path.absolute().parent, text=text)
    if profile is None:
        return config
    keys, text = _read(profile)
    keys = keys or {}
    if isinstance(keys, dict) and set(keys) == {"place"}:
        raise InvalidInputError(
            f"{profile}: a profile holds the keys of `place` themselves; take the line 'place:' away"
        )
    over = _validated(Place, keys, str(profile), profile.absolute().parent, text=text)
    return config.model_copy(update={"place": _overlaid(config.place, over).named(profile.stem)})


def parse(tree: Any, where: str, folder: Path | None = None, plugins: Path | None = None) -> Config:
    """Validate a configuration.

    Args:
        tree: The configuration as JSON values.
        where: Names the configuration in messages.
        folder: Relative paths are taken from here; None leaves them as they are.
        plugins: Folder with the files of a frozen configuration's own operators, below their keys; they are imported.

    Raises:
        InvalidInputError: it is not valid; it names every problem and its place in the tree.
    """
    return _validated(Config, tree, where, folder, plugins)


def placed(config: Config, **changes: object) -> Config:
    """The configuration with other values in its `place`.

    Args:
        config: The configuration.
        changes: Keys of `place` and their new values.

    Raises:
        InvalidInputError: `place` does not take a value.
    """
    over = _validated(Place, changes, "the command line", Path.cwd())
    return config.model_copy(update={"place": _overlaid(config.place, over)})


def completed(config: Config, frozen: Config) -> Config:
    """The user's configuration, completed with the frozen value of every key that decides results and that it does not
    set.

    Sections are completed key by key, those of tasks and experts one by one; other maps and lists are set as a whole.

    Args:
        config: The user's configuration; its `place` is kept.
        frozen: The configuration that was frozen at seeding.
    """
    return _overlaid(frozen, config).model_copy(update={"place": config.place})


def _overlaid(under: M, over: M) -> M:
    """`under` with every value that is set in `over`."""
    changes = {name: _laid(getattr(under, name), getattr(over, name)) for name in over.model_fields_set}
    return under.model_copy(update=changes)


def _laid(under: Any, over: Any) -> Any:
    """A value over another: sections, and operators of one kind, key by key; maps one by one; all else as a whole."""
    if isinstance(over, Section) and isinstance(under, type(over)):
        return _overlaid(under, over)
    if isinstance(over, Operator) and isinstance(under, Operator) and over.stored == under.stored:
        return _overlaid(under, over)  # of a user's own, the classes are two, loaded from equal files
    if isinstance(over, dict) and isinstance(under, dict):
        return {name: _laid(under.get(name), value) for name, value in over.items()}
    return over


def _read(path: Path) -> tuple[Any, bytes]:
    """A file's value and its text."""
    try:
        text = read_file(path, YAML_BYTES)
        return parse_yaml(text), text
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror}); give the path of a config file") from error
    except yaml.reader.ReaderError as error:
        raise InvalidInputError(f"{path}: {error.reason} at byte {error.position}; save the file as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _validated(
    kind: type[S], tree: Any, where: str, folder: Path | None, plugins: Path | None = None, text: bytes = b""
) -> S:
    try:
        return kind.model_validate(tree, context={"folder": folder, "plugins": plugins})
    except ValidationError as error:
        raise InvalidInputError("\n".join(sentences(error, kind, tree, where, yaml_lines(text)))) from error
