"""One evolution as one validated tree. Unknown keys are errors; the method is separate from the place it runs in.

`name`, `seed`, `models`, `tasks`, `evaluation` and `method` decide the results: they are frozen at seeding.
`place` decides where and how the work is done, and may change between runs of the same evolution.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from cycleqd import __version__
from cycleqd.errors import InvalidInputError
from cycleqd.loading import is_file, load_class, own_names
from cycleqd.search.algorithms import Algorithm
from cycleqd.search.operators import Operator
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.final import Final
from cycleqd.search.operators.mutation import Mutation
from cycleqd.search.operators.selection import Selection

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _absolute(path: str, info: ValidationInfo) -> str:
    """Take a relative path from the config file's own folder (the validation context); s3:// stays as it is."""
    folder = (info.context or {}).get("folder")
    if folder is None or path.startswith("s3://"):
        return path
    return os.path.normpath(Path(folder) / Path(path).expanduser())


def _absolute_plugin(plugin: str, info: ValidationInfo) -> str:
    """The same for a plug-in class in a file, "path/to/file.py:Class"."""
    module, _, name = plugin.rpartition(":")
    return f"{_absolute(module, info)}:{name}" if is_file(plugin) else plugin


def _stored(plugin: str, key: str) -> str:
    """The same class in the copy that seeding makes of its file."""
    return f"{key}:{plugin.rpartition(':')[2]}" if is_file(plugin) else plugin


def _known_algorithm(name: str) -> str:
    """Refuse an algorithm that there is no module of."""
    if name not in own_names(Algorithm.own_modules):
        raise ValueError(f"there is no algorithm '{name}'; there are {', '.join(own_names(Algorithm.own_modules))}")
    return name


def _kubernetes(kind: str, pattern: str, example: str) -> AfterValidator:
    """Refuse what Kubernetes, by way of KFP, would refuse when a pod is made."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"'{text}' is not a Kubernetes {kind}; write it like {example}")
        return text

    return AfterValidator(check)


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
Plugin = Annotated[
    str, Field(pattern=r"^([a-z][a-z0-9_]*|.+:[A-Za-z_][A-Za-z0-9_]*)$"), AfterValidator(_absolute_plugin)
]
Cpu = Annotated[str, _kubernetes("quantity", r"([0-9]*[.])?[0-9]+m?", '"2" or "500m"')]
_BYTES = r"[0-9]+(\.[0-9]+)?([EPTGMK]i?)?"
Bytes = Annotated[str, _kubernetes("quantity", _BYTES, '"8G" or "16Gi"')]
_DOMAIN, _WORD = r"(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/", r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
Resource = Annotated[str, _kubernetes("resource", _DOMAIN + _WORD, '"nvidia.com/gpu"')]
Key = Annotated[str, _kubernetes("label", f"({_DOMAIN})?{_WORD}", '"nvidia.com/gpu.product"')]
Value = Annotated[str, _kubernetes("label's value", f"({_WORD})?", '"NVIDIA-H100-80GB-HBM3"')]
Image = Literal["control", "weights", "evaluate"]


class Section(BaseModel):
    """A strict, immutable part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


class Expert(Section):
    """An expert: its checkpoint (a folder or s3:// prefix) and the task it was fine-tuned for."""

    path: Location
    task: Name


class Models(Section):
    """The base, the K or more experts fine-tuned from it, and the shard size of the checkpoints that are written."""

    base: Location
    experts: dict[Name, Expert] = Field(min_length=1)
    shard_size: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(KB|MB|GB)$")] = "5GB"


class Split(Section):
    """Which samples the search sees and which are held out. By seed and share, or by explicit ids.

    `search_samples` and `test_samples` subsample the two (the same subset for every model); None takes all.
    """

    share: Fraction = 0.5
    seed: int = 0
    search_ids: tuple[str, ...] | None = None
    test_ids: tuple[str, ...] | None = None
    search_samples: int | None = Field(default=None, ge=1)
    test_samples: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _disjoint(self) -> Split:
        if (self.search_ids is None) != (self.test_ids is None):
            raise ValueError("give both search_ids and test_ids, or neither")
        shared = set(self.search_ids or ()) & set(self.test_ids or ())
        if shared:
            raise ValueError(
                f"search_ids and test_ids share {sorted(shared)[:3]}: a held-out sample must not be searched on"
            )
        return self


class Generation(Section):
    """How replies are generated for a task. Temperature 0 is greedy."""

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    seed: int = 0


class Task(Section):
    """A task: plug-in class, data, settings. `report_only` tasks are scored but never enter an archive."""

    class_: Plugin = Field(alias="class")
    data: Location
    settings: dict[str, Any] = {}
    split: Split = Split()
    generation: Generation = Generation()
    report_only: bool = False


class Evaluation(Section):
    """How scores are measured: engine, arithmetic and batches are part of what a score means."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_tokens: int = Field(default=16384, ge=1)
    threads: int = Field(default=2, ge=1)
    max_context: int | None = Field(default=None, ge=16)
    allow_flat_tasks: bool = False


class Grid(Section):
    """The archives' grids: bins per axis and how their bounds are set (at seeding, once)."""

    bins: int | dict[Name, int] = 15
    bounds: Literal["experts", "own_expert"] | dict[Name, tuple[Fraction, Fraction]] = "experts"

    @field_validator("bins")
    @classmethod
    def _positive(cls, bins: int | dict[str, int]) -> int | dict[str, int]:
        for count in [bins] if isinstance(bins, int) else bins.values():
            if count < 1:
                raise ValueError(f"bins must be at least 1, not {count}")
        return bins

    @model_validator(mode="after")
    def _ordered(self) -> Grid:
        for task, (low, high) in self.bounds.items() if isinstance(self.bounds, dict) else ():
            if low > high:
                raise ValueError(f"bounds of task '{task}' are [{low}, {high}]: the first must not exceed the second")
        return self


def _find_operator(base: type[Operator], default: str) -> Any:
    """How a configuration's {kind: …, settings} becomes an operator: its class is found by `kind`, and validates it.

    A file is taken from the configuration's own folder or, where a frozen one is read, from the folder that its stored
    plug-ins were fetched to, and then keeps its name there.
    """

    def find(value: Any, handler: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return handler(value)
        kind = value.get("kind", default)
        if not isinstance(kind, str):
            raise ValueError(f"kind is {kind!r}; it is a name")
        kind, root = _absolute_plugin(kind, info), (info.context or {}).get("plugins") or Path()
        try:
            found = load_class(kind, base, root)
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
        return found.model_validate({**value, "kind": kind}, context=info.context)

    return WrapValidator(find)


ParentSelection = Annotated[SerializeAsAny[Selection], _find_operator(Selection, "elite")]
CopiesRule = Annotated[SerializeAsAny[Copies], _find_operator(Copies, "allow")]
CrossoverOperator = Annotated[SerializeAsAny[Crossover], _find_operator(Crossover, "mean")]
MutationOperator = Annotated[SerializeAsAny[Mutation], _find_operator(Mutation, "svd")]
FinalRule = Annotated[SerializeAsAny[Final], _find_operator(Final, "better")]


def _default() -> Any:
    """The operator that is meant where nothing is written."""
    return Field(default={}, validate_default=True)


class Stop(Section):
    """Stop early: after so many child evaluations, or so many generations without a better best average."""

    evaluations: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)


class Method(Section):
    """What is computed: the algorithm, its operators, and settings of single algorithms.

    focus: the archive t mod K at generation t, all archives at once, or a fixed one: `fixed` is the first task's,
    `{fixed: TASK}` names it. `children` are made for each archive in focus.
    """

    algorithm: Annotated[str, AfterValidator(_known_algorithm)] = "cycleqd"
    generations: int = Field(default=1200, ge=0)
    children: int = Field(default=1, ge=1)
    focus: Literal["cyclic", "all", "fixed"] | Annotated[dict[Literal["fixed"], Name], Field(min_length=1)] = "cyclic"
    grid: Grid = Grid()
    parents: ParentSelection = _default()
    copies: CopiesRule = _default()
    crossover: CrossoverOperator = _default()
    mutation: MutationOperator = _default()
    population: int = Field(default=16, ge=2)
    lexicase_cases: Literal["scores", "samples"] = "scores"
    lexicase_epsilon: float = Field(default=0.0, ge=0)
    final: FinalRule = _default()
    stop: Stop = Stop()

    @property
    def operators(self) -> dict[str, Operator]:
        """The operators by the key that they stand under."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if isinstance(value, Operator)}


class Images(Section):
    """The three images, as full references: with a registry where nodes do not hold them, with a digest to pin them."""

    control: str = f"cycleqd/control:{__version__}"
    weights: str = f"cycleqd/weights:{__version__}"
    evaluate: str = f"cycleqd/evaluate:{__version__}"


def image_of(stage: str) -> Image:
    """The image that a stage runs in, which is also the name of its resources."""
    if stage in ("merge", "mutate", "aggregate", "choose_final"):
        return "weights"
    return "evaluate" if stage == "evaluate" else "control"


class Toleration(Section):
    """A taint that pods tolerate, in Kubernetes' words."""

    key: Key | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: Value | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None
    seconds: int | None = Field(default=None, alias="tolerationSeconds", ge=0)


class Resources(Section):
    """What one task pod asks for on a cluster (Kubernetes quantities), and the nodes it may run on.

    shared_memory is the size of /dev/shm, part of memory; empty leaves the container's own 64 MiB. timeout: seconds,
    None takes the place's.
    """

    cpu: Cpu = "2"
    memory: Bytes = "8G"
    gpu: int = Field(default=0, ge=0)
    gpu_type: Resource = "nvidia.com/gpu"
    shared_memory: Annotated[str, _kubernetes("quantity", f"({_BYTES})?", '"16Gi"')] = ""
    node_selector: dict[Key, Value] = {}
    tolerations: tuple[Toleration, ...] = ()
    timeout: int | None = Field(default=None, ge=60)


class Place(Section):
    """Where and how the work runs; changes no result.

    group: what one evaluate task does: "task" one child on one benchmark, "child" all benchmarks of a child,
    "generation" all children. fused: merge and mutate in one task. embedded services: a SeaweedFS and an MLflow
    server started in `folder` by the command; otherwise AWS_ENDPOINT_URL, MLFLOW_TRACKING_URI and the usual AWS
    variables name them. On a cluster the Secret `secret` holds the keys and the ConfigMap `config_map` the addresses,
    both in `namespace`, where runs execute; `control`, `weights` and `evaluate` are the pods of the three images.
    """

    runner: Literal["local", "docker", "kubeflow"] = "local"
    services: Literal["embedded", "external"] = "external"
    bucket: str = "cycleqd"
    folder: Annotated[Location, Field(validate_default=True)] = ".cycleqd"
    group: Literal["task", "child", "generation"] = "task"
    fused: bool = True
    generations_per_run: int = Field(default=1, ge=1)
    parallelism: int = Field(default=2, ge=1)
    workers: int = Field(default=4, ge=1)
    threads: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_size: str = "50GB"
    timeout: int = Field(default=6 * 3600, ge=60)
    retries: int = Field(default=1, ge=0)
    pins: tuple[str, ...] = ()
    images: Images = Images()
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    endpoint: str | None = None
    tls_ca: Location | None = None
    namespace: str = "kubeflow"
    service_account: str = ""
    secret: str = "cycleqd-credentials"
    config_map: str = "cycleqd-settings"
    control: Resources = Resources(cpu="1", memory="2G")
    weights: Resources = Resources()
    evaluate: Resources = Resources()

    def image(self, stage: str) -> str:
        """The reference of a stage's image."""
        found: str = getattr(self.images, image_of(stage))
        return found

    def resources(self, stage: str) -> Resources:
        """What a stage's pod asks for."""
        found: Resources = getattr(self, image_of(stage))
        return found


class Config(Section):
    """One evolution."""

    name: Name
    seed: int = Field(default=0, ge=0)
    models: Models
    tasks: dict[Name, Task] = Field(min_length=2)
    evaluation: Evaluation = Evaluation()
    method: Method = Field(default_factory=Method)
    place: Place = Place()

    @property
    def search_tasks(self) -> tuple[str, ...]:
        """The K tasks of the archives, in the order of the file."""
        return tuple(name for name, task in self.tasks.items() if not task.report_only)

    @property
    def combined(self) -> tuple[str, ...]:
        """Ids of the models that finalising builds. The aggregate is the final model, or stands apart from it."""
        return ("naive", "final") if self.method.final.makes == "aggregate" else ("naive", "aggregated", "final")

    @property
    def chosen(self) -> str | None:
        """The combined model that is built only once the aggregate has a score; None where nothing is chosen."""
        return "final" if self.method.final.makes == "either" else None

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
            task["class"] = _stored(task["class"], f"tasks/{name}/plugin.py")
        for key, operator in self.method.operators.items():
            tree["method"][key]["kind"] = _stored(operator.kind, f"operators/{key}/plugin.py")
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
        return self


def load(path: Path, profile: Path | None = None) -> Config:
    """Read a YAML (or JSON) configuration. Relative paths in it are taken from its own folder.

    A profile is a file of `place`'s keys that are laid over the configuration's: sections of it key by key, values and
    lists as a whole. Raises InvalidInputError with one sentence a problem.
    """
    tree = _read(path)
    if isinstance(tree, dict):
        tree.setdefault("place", {})  # the default folder lies beside the file, too
    config = parse(tree, str(path), path.absolute().parent)
    if profile is None:
        return config
    keys = _read(profile) or {}
    if isinstance(keys, dict) and set(keys) == {"place"}:
        raise InvalidInputError(
            f"{profile}: a profile holds the keys of `place` themselves; take the line 'place:' away"
        )
    over = _validated(Place, keys, str(profile), profile.absolute().parent)
    return config.model_copy(update={"place": _overlaid(config.place, over)})


def parse(tree: Any, where: str, folder: Path | None = None, plugins: Path | None = None) -> Config:
    """Validate a tree; with `folder`, relative paths in it are taken from there.

    plugins: where a frozen configuration's operators of a user's own lie, below their keys; they are imported. Raises
    InvalidInputError naming every problem and its place in the tree.
    """
    return _validated(Config, tree, where, folder, plugins)


def placed(config: Config, **changes: object) -> Config:
    """The configuration with other values in its `place`. Raises InvalidInputError for those that it does not take."""
    over = _validated(Place, changes, "the command line", Path.cwd())
    return config.model_copy(update={"place": _overlaid(config.place, over)})


def _overlaid(under: S, over: S) -> S:
    """`under` with everything that was said in `over`."""
    changes = {name: getattr(over, name) for name in over.model_fields_set}
    for name, value in changes.items():
        if isinstance(value, Section):
            changes[name] = _overlaid(getattr(under, name), value)
    return under.model_copy(update=changes)


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror}); give the path of a config file") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _validated(kind: type[S], tree: Any, where: str, folder: Path | None, plugins: Path | None = None) -> S:
    try:
        return kind.model_validate(tree, context={"folder": folder, "plugins": plugins})
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise InvalidInputError("\n".join(lines)) from error
