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
    """A strict, immutable part of the configuration. The string below a field is its line in docs/configuration.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Section)
M = TypeVar("M", bound=BaseModel)


class Expert(Section):
    """An expert: its checkpoint (a folder or s3:// prefix) and the task it was fine-tuned for."""

    path: Location
    """The expert's checkpoint: a Hugging Face folder of safetensors, or an s3:// prefix."""
    task: Name
    """The task that it was fine-tuned for, one of the search tasks."""


class Models(Section):
    """The base, the K or more experts fine-tuned from it, and the shard size of the checkpoints that are written."""

    base: Location
    """The base model that every expert was fine-tuned from: a folder, or an s3:// prefix."""
    experts: dict[Name, Expert] = Field(min_length=1)
    """At least one expert for each search task, by a name of your choice."""
    shard_size: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(KB|MB|GB)$")] = "5GB"
    """Largest file of a checkpoint that is written, such as 500MB or 5GB."""


class Split(Section):
    """Which samples the search sees and which are held out: by seed and share, or by explicit ids."""

    share: Fraction = 0.5
    """Share of the samples that the search sees; the others are held out for the report."""
    seed: int = 0
    """Seed of the shuffle before the share is taken."""
    search_ids: tuple[str, ...] | None = None
    """Instead of a share: the ids of the samples that the search sees."""
    test_ids: tuple[str, ...] | None = None
    """The ids of the samples that are held out; given together with `search_ids`."""
    search_samples: int | None = Field(default=None, ge=1)
    """Score on so many of the search's samples only, the same for every model; empty: all."""
    test_samples: int | None = Field(default=None, ge=1)
    """The same for the held-out samples; empty: all."""

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
    """Longest reply, in tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy decoding; above 0 tokens are sampled."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this probability."""
    stop: tuple[str, ...] = ()
    """A reply ends before any of these strings."""
    seed: int = 0
    """Seed of sampling."""


class Task(Section):
    """A task: plug-in class, data, settings."""

    class_: Plugin = Field(alias="class")
    """A built-in benchmark, `code`, `db` or `os`; or your own, `file.py:Class` or `package.module:Class`."""
    data: Location
    """The task's data: a file, a folder or an s3:// prefix."""
    settings: dict[str, Any] = {}
    """The task's own settings; its class checks them."""
    split: Split = Split()
    """Which samples the search sees."""
    generation: Generation = Generation()
    """How replies are generated."""
    report_only: bool = False
    """Score it for base, experts and final model only; the search never uses it."""


class Evaluation(Section):
    """How scores are measured: engine, arithmetic and batches are part of what a score means."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """The inference engine; `auto` is vLLM on a CUDA device and transformers elsewhere."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of inference; `auto` is the checkpoint's own dtype."""
    batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of a batch: rows × (longest prompt + longest reply)."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the engine. On a machine that others use, 1 is fastest."""
    max_context: int | None = Field(default=None, ge=16)
    """Longest context in tokens; empty: the model's own."""
    allow_flat_tasks: bool = False
    """Go on although every expert scores 0 on a task, which then cannot guide the search."""


class Grid(Section):
    """The archives' grids: bins per axis and how their bounds are set (at seeding, once)."""

    bins: int | dict[Name, int] = 15
    """Bins of an axis: one number for all tasks, or one for each."""
    bounds: Literal["experts", "own_expert"] | dict[Name, tuple[Fraction, Fraction]] = "experts"
    """0.85 × the lowest to 1.15 × the highest score of all experts, or of the task's own; or [low, high] for each."""

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
    """A budget of evaluated children; empty: none."""
    patience: int | None = Field(default=None, ge=1)
    """Generations without a better best average; empty: none."""


class Method(Section):
    """What is computed: the algorithm, its operators, and settings of single algorithms."""

    algorithm: Annotated[str, AfterValidator(_known_algorithm)] = "cycleqd"
    """The search algorithm: `cycleqd` (archives), or the baselines `nsga2` and `lexicase` (a population)."""
    generations: int = Field(default=1200, ge=0)
    """Generations of the whole evolution."""
    children: int = Field(default=1, ge=1)
    """Children of a generation, for each archive in focus."""
    focus: Literal["cyclic", "all", "fixed"] | Annotated[dict[Literal["fixed"], Name], Field(min_length=1)] = "cyclic"
    """The archives that a generation works on: the next in turn, `all`, or one: the first task's or `{fixed: TASK}`."""
    grid: Grid = Grid()
    """The grids of the archives."""
    parents: ParentSelection = _default()
    """Which elites become parents."""
    copies: CopiesRule = _default()
    """What happens to copies of an elite."""
    crossover: CrossoverOperator = _default()
    """How the parents' task vectors are combined."""
    mutation: MutationOperator = _default()
    """How a child's task vector is changed."""
    population: int = Field(default=16, ge=2)
    """Size of the population of `nsga2` and `lexicase`."""
    lexicase_cases: Literal["scores", "samples"] = "scores"
    """What `lexicase` filters by: tasks' scores, or single samples."""
    lexicase_epsilon: float = Field(default=0.0, ge=0)
    """`lexicase` keeps models whose score is within this of the best."""
    final: FinalRule = _default()
    """Which model is the final one."""
    stop: Stop = Stop()
    """When to stop early."""

    @property
    def operators(self) -> dict[str, Operator]:
        """The operators by the key that they stand under."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if isinstance(value, Operator)}


class Images(Section):
    """The three images, as full references: with a registry where nodes do not hold them, with a digest to pin them
    (`registry.example/cycleqd/control@sha256:…`).
    """

    control: str = f"cycleqd/control:{__version__}"
    """Image of seed, select_parents and update_archives."""
    weights: str = f"cycleqd/weights:{__version__}"
    """Image of merge, mutate and aggregate."""
    evaluate: str = f"cycleqd/evaluate:{__version__}"
    """Image of evaluate."""


def image_of(stage: str) -> Image:
    """The image that a stage runs in, which is also the name of its resources."""
    if stage in ("merge", "mutate", "aggregate", "choose_final"):
        return "weights"
    return "evaluate" if stage == "evaluate" else "control"


class Toleration(Section):
    """A taint that pods tolerate, as Kubernetes writes it."""

    key: Key | None = None
    """Key of the taint; empty with `Exists`: every taint."""
    operator: Literal["Equal", "Exists"] | None = None
    """Whether the taint's value must be equal, or only exist."""
    value: Value | None = None
    """Value of the taint."""
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None
    """Effect of the taint; empty: all."""
    seconds: int | None = Field(default=None, alias="tolerationSeconds", ge=0)
    """How long a pod stays on a node with a NoExecute taint."""


class Resources(Section):
    """What one task pod asks for on a cluster (Kubernetes quantities), and the nodes it may run on."""

    cpu: Cpu = "2"
    """CPUs, request and limit."""
    memory: Bytes = "8G"
    """Memory, request and limit."""
    gpu: int = Field(default=0, ge=0)
    """GPUs of a pod."""
    gpu_type: Resource = "nvidia.com/gpu"
    """Name of the GPU resource."""
    shared_memory: Annotated[str, _kubernetes("quantity", f"({_BYTES})?", '"16Gi"')] = ""
    """Size of /dev/shm, a part of `memory`; empty: the container's own 64 MiB."""
    node_selector: dict[Key, Value] = {}
    """Labels of the nodes that a pod may run on."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that pods tolerate."""
    timeout: int | None = Field(default=None, ge=60)
    """Seconds until the task is ended; empty: `place.timeout`."""


class Place(Section):
    """Where and how the work runs; changes no result, and may change at any time."""

    runner: Literal["local", "docker", "kubeflow"] = "local"
    """Tasks run as processes of this machine, as its containers, or on a Kubeflow cluster."""
    services: Literal["embedded", "external"] = "external"
    """`embedded`: S3 and MLflow servers in `folder`; `external`: those that the environment names."""
    bucket: str = "cycleqd"
    """The S3 bucket; every evolution has a prefix of its own in it."""
    folder: Annotated[Location, Field(validate_default=True)] = ".cycleqd"
    """Where embedded services, cached checkpoints and temporary files are kept."""
    group: Literal["task", "child", "generation"] = "task"
    """What one evaluate task scores: a child on one `task`, a `child`, or all children of a `generation`."""
    fused: bool = True
    """Merge and mutate in one task; the checkpoint's bytes are the same either way."""
    generations_per_run: int = Field(default=1, ge=1)
    """Generations in one pipeline run."""
    parallelism: int = Field(default=2, ge=1)
    """Children that are worked on at a time on one machine; on a cluster GPUs, quotas and queues limit."""
    workers: int = Field(default=4, ge=1)
    """Samples of a task that are judged at a time."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of merging and mutating; any number gives the same bytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models generate and SVD mutation computes; `auto` is CUDA where there is a device."""
    cache_size: str = "50GB"
    """Space for cached checkpoints on a machine."""
    timeout: int = Field(default=6 * 3600, ge=60)
    """Seconds until a task is ended."""
    retries: int = Field(default=2, ge=0)
    """How often `drive` repeats a failed run on a cluster."""
    pins: tuple[str, ...] = ()
    """Ids of models that are never cleaned up."""
    images: Images = Images()
    """The images of tasks in containers and pods."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a cluster pulls the images."""
    pull_secrets: tuple[str, ...] = ()
    """Kubernetes Secrets with the registry's credentials."""
    endpoint: str | None = None
    """URL of the KFP API; empty: `KF_PIPELINES_ENDPOINT`, else the kubeconfig's cluster."""
    tls_ca: Location | None = None
    """File with the certificate authority of that URL; empty: the system's."""
    namespace: str = "kubeflow"
    """Kubernetes namespace in which runs execute."""
    service_account: str = ""
    """Service account of pods; empty: the one that KFP chooses."""
    secret: str = "cycleqd-credentials"
    """Secret with the S3 keys, in `namespace`."""
    config_map: str = "cycleqd-settings"
    """ConfigMap with the addresses of S3 and MLflow, in `namespace`."""
    control: Resources = Resources(cpu="1", memory="2G")
    """Resources of pods of the `control` image."""
    weights: Resources = Resources()
    """Resources of pods of the `weights` image."""
    evaluate: Resources = Resources()
    """Resources of pods of the `evaluate` image."""

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
    """The evolution's name: its prefix in the bucket and its experiment in MLflow."""
    seed: int = Field(default=0, ge=0)
    """Seed of every random draw of the search; replicates of an evolution differ in it."""
    models: Models
    """Base and experts."""
    tasks: dict[Name, Task] = Field(min_length=2)
    """What models are scored on, by a name of your choice; at least two take part in the search."""
    evaluation: Evaluation = Evaluation()
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


def completed(config: Config, frozen: Config) -> Config:
    """The configuration, with another's value for every key that decides results and that it does not set itself.

    Sections are completed key by key, those of tasks and experts one by one; other maps and lists are set as a whole.
    """
    return _overlaid(frozen, config).model_copy(update={"place": config.place})


def _overlaid(under: M, over: M) -> M:
    """`under` with everything that was said in `over`."""
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
