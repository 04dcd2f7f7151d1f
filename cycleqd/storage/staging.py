"""Finding an evolution's inputs (folders, files, s3:// URLs), checking them, copying them to S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError
from cycleqd.loading import is_file
from cycleqd.outside import DATA_BYTES, inside, is_name, read_file
from cycleqd.search.config import Config
from cycleqd.search.records import JSON, digest
from cycleqd.search.tasks import TaskConfig
from cycleqd.storage import layout
from cycleqd.storage.checkpoints import S3Source
from cycleqd.storage.inputs import find_source
from cycleqd.storage.models import sink
from cycleqd.storage.objects import Store
from cycleqd.weights.checkpoint import FLOATS, Checkpoint, open_checkpoint
from cycleqd.weights.compatibility import completing, end_tokens, ending_at, prompt_problems, refuse_problems
from cycleqd.weights.kinds import MATRIX, kind_of
from cycleqd.weights.lora import WEIGHTS, LoraAdapter, is_adapter, open_adapter
from cycleqd.weights.manifest import FileEntry, Manifest
from cycleqd.weights.protocols import Buffer, Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PIECE = 16 << 20
MOST = 512
"""The largest rank of an adapter that vLLM serves."""

_COMPANIONS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_NOTICES = ("LICENSE", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class Staged:
    """A task's files, found but not copied. data: path below tasks/NAME/data/ → source. No plugin: installed code."""

    data: Mapping[str, Path | S3Source]
    plugin: Mapping[str, Path | S3Source]


def given(config: Config) -> dict[str, str]:
    """What the user gives: model id → folder or s3:// URL. In the span an expert itself is made by the evolution.

    Args:
        config: The configuration, `models.weights` decided.
    """
    kind = "source" if config.in_span else "expert"
    return {"base": config.models.base} | {f"{kind}-{n}": e.path for n, e in config.models.experts.items()}


def open_inputs(client: S3Client, config: Config) -> dict[str, Checkpoint | LoraAdapter]:
    """Base and experts, opened and found to fit together. Only headers, configs and tokenizers are read.

    Args:
        client: For models in S3.
        config: The configuration, `models.weights` decided.

    Returns:
        By model id, the base first.

    Raises:
        InvalidInputError: A model is unusable, or does not fit the base.
    """
    sources = {model: find_source(client, path) for model, path in given(config).items()}
    base = open_checkpoint(sources.pop("base"))
    opened = {model: open_expert(source, base) for model, source in sources.items()}
    refuse_problems(base, list(opened.values()))
    problems = unprompted(config, base, list(opened.values()))
    if config.in_span and (wide := too_wide(config, base, list(opened.values()))):
        problems.append(wide)
    for problem in problems:
        raise InvalidInputError(problem)
    return {"base": base, **opened}


def unprompted(config: Config, base: Checkpoint, experts: Sequence[Checkpoint | LoraAdapter]) -> list[str]:
    """Models without the chat template that an engine makes prompts with, a sentence each; a user's own may need none.

    Args:
        config: It names the engine.
        base: The base.
        experts: The opened experts.
    """
    return [] if ":" in config.evaluation.engine else prompt_problems(base, experts)


def too_wide(config: Config, base: Checkpoint, experts: Sequence[Checkpoint | LoraAdapter]) -> str | None:
    """Why children would be adapters of a rank that vLLM does not serve; None when they are not, or not served so.

    Args:
        config: The configuration, with an expert's rank where one is extracted.
        base: The base.
        experts: The opened experts, in the configuration's order.
    """
    if config.models.keep_dense:
        return None
    ranks = total_ranks(config, base, experts)
    widest = max((min(rank, *base.tensors[name].shape) for name, rank in ranks.items()), default=0)
    if widest <= MOST:
        return None
    return (
        f"children would be adapters of rank {widest}, and vLLM serves at most {MOST}: set models.rank to"
        f" {MOST // len(experts)} or less, and extract large adapters anew (merge them into the base first)"
    )


def total_ranks(config: Config, base: Checkpoint, experts: Sequence[Checkpoint | LoraAdapter]) -> dict[str, int]:
    """Of each matrix that an expert may change, the sum of the experts' ranks, which the basis cannot exceed.

    Args:
        config: The configuration, with an expert's rank where one is extracted.
        base: The base.
        experts: The opened experts, in the configuration's order.

    Returns:
        By the base's tensor name, in the base's order; matrices that no expert can change are left out.
    """
    total: dict[str, int] = {}
    for name, tensor in base.tensors.items():
        for expert, found in zip(config.models.experts.values(), experts, strict=True):
            rank = 0
            if isinstance(found, LoraAdapter):
                rank = found.matrices[name].rank if name in found.matrices else 0
            elif tensor.dtype in FLOATS and kind_of(base, name) == MATRIX:
                rank = expert.rank or 0
            if rank:
                total[name] = total.get(name, 0) + rank
    return total


def open_expert(source: Source, base: Checkpoint) -> Checkpoint | LoraAdapter:
    """An expert, whatever it is.

    Args:
        source: Its folder.
        base: The base that it was fine-tuned from.

    Raises:
        InvalidInputError: It is neither a usable checkpoint nor a usable adapter of this base.
    """
    return open_adapter(source, base) if is_adapter(source.files()) else open_checkpoint(source)


def copy_model(store: Store, model: str, opened: Mapping[str, Checkpoint | LoraAdapter]) -> Manifest:
    """Copy what belongs to a checkpoint or an adapter; a checkpoint gets what it lacks, and all models' end tokens.

    Args:
        store: The evolution.
        model: Id of the model that is copied.
        opened: As `open_inputs`.
    """
    target, files, found = sink(store, layout.checkpoint(model)), {}, opened[model]
    changed = _made_for_prompts(opened, found) if isinstance(found, Checkpoint) else {}
    sizes = parts(found) | {name: len(content) for name, content in changed.items()}
    for name, size in sorted(sizes.items()):
        with ExitStack() as stack:
            writer = target.create(name, size)
            stack.callback(writer.abort)
            for piece in [changed[name]] if name in changed else _pieces(found.source, name, size):
                writer.write(piece)
            files[name] = FileEntry(size, writer.close())
            stack.pop_all()
    return Manifest(files)


def _made_for_prompts(opened: Mapping[str, Checkpoint | LoraAdapter], model: Checkpoint) -> Mapping[str, bytes]:
    base, *others = opened.values()
    assert isinstance(base, Checkpoint), "an adapter is no base"
    return {**completing(model, base, others), **ending_at(model, base, end_tokens(base, others))}


def parts(opened: Checkpoint | LoraAdapter) -> dict[str, int]:
    """Files and sizes of what belongs to a model: weights, configuration, tokenizer, code and licence; nothing else.

    Args:
        opened: A checkpoint or an adapter.

    Raises:
        InvalidInputError: One has a name that no file of a folder has, as objects in S3 can.
    """
    weights = {tensor.file for tensor in opened.tensors.values()} if isinstance(opened, Checkpoint) else {WEIGHTS}
    found = {
        name: size for name, size in sorted(opened.source.files().items()) if name in weights or is_companion(name)
    }
    if odd := [name for name in found if not is_name(name)]:
        raise InvalidInputError(f"{opened.source.location} holds {odd[0]!r}, which is no file's name; rename it")
    return found


def is_companion(name: str) -> bool:
    """Whether a file of a model's folder belongs to it beside its weights: configuration, tokenizer, code, licence.

    Args:
        name: The file's.
    """
    return name.endswith(_COMPANIONS) or name.startswith(_NOTICES)


def _pieces(source: Source, name: str, size: int) -> Iterator[Buffer]:
    for start in range(0, size, _PIECE):
        yield source.read_range(name, start, min(start + _PIECE, size))


def find_task(client: S3Client, name: str, task: TaskConfig) -> Staged:
    """Find a task's data and plug-in.

    Args:
        client: For data and plug-ins in S3.
        name: Name of the task in the configuration, for messages.
        task: The task's section of the configuration.

    Raises:
        InvalidInputError: data or plug-in are not there.
    """
    basename = task.data.rstrip("/").rsplit("/", 1)[-1]
    module = task.class_.rpartition(":")[0]
    for path in (module if module.endswith(".py") else "", task.data):
        if path and not path.startswith("s3://") and not Path(path).exists():
            raise InvalidInputError(
                f"task '{name}': there is no {path}; correct its data or class in the configuration"
            )
    plugin = _find_plugin(client, f"task '{name}'", module) if module.endswith(".py") else {}
    if task.data.startswith("s3://"):
        return Staged(_remote(client, f"task '{name}'", task.data, basename), plugin)
    root = Path(task.data)
    if root.is_file():
        return Staged({basename: root}, plugin)
    files = {f"{basename}/{p.relative_to(root).as_posix()}": p for p in sorted(root.rglob("*")) if p.is_file()}
    if not files:
        raise InvalidInputError(
            f"task '{name}': the folder {root} holds no file; correct its data in the configuration"
        )
    return Staged(files, plugin)


def _find_plugin(client: S3Client, what: str, module: str) -> dict[str, Path | S3Source]:
    basename = module.rsplit("/", 1)[-1]
    return _remote(client, what, module, basename) if module.startswith("s3://") else {basename: Path(module)}


def fetch_operators(client: S3Client, tree: JSON, folder: Path) -> JSON:
    """A configuration's tree with the files of operators and engine fetched from S3.

    An operator's settings are validated by its own class, so its file is needed before the configuration is read.

    Args:
        client: Of the store that holds the files.
        tree: The configuration as JSON; operators may name s3://…/FILE.py:CLASS.
        folder: Where the files are written; the tree that is returned names them there.

    Raises:
        InvalidInputError: there is no such file.
    """

    def fetched(plugin: str, what: str) -> str:
        module, _, name = plugin.rpartition(":")
        if not is_file(plugin) or not module.startswith("s3://"):
            return plugin
        ((path, where),) = _find_plugin(client, what, module).items()
        copy = inside(folder, f"{what.rpartition('.')[2]}.py")
        copy.write_bytes(content(path, where))
        return f"{copy}:{name}"

    method, evaluation = dict(tree.get("method", {})), dict(tree.get("evaluation", {}))
    for key, value in method.items():
        if isinstance(value, dict) and isinstance(value.get("kind"), str):
            method[key] = {**value, "kind": fetched(value["kind"], f"method.{key}")}
    if isinstance(evaluation.get("engine"), str):
        evaluation["engine"] = fetched(evaluation["engine"], "evaluation.engine")
    return {**tree, "method": method, "evaluation": evaluation}


def copy_operators(store: Store, config: Config) -> None:
    """Copy the files of a user's own operators and engine to where the frozen configuration names them.

    Args:
        store: Objects of the evolution.
        config: The configuration that is being seeded.
    """
    for key, file in config.own_files.items():
        store.put(key, content(file, Path(file)))


def _remote(client: S3Client, what: str, url: str, basename: str) -> dict[str, Path | S3Source]:
    """An object or everything below a prefix."""
    bucket, _, key = url.removeprefix("s3://").rstrip("/").partition("/")
    parent = S3Source(client, bucket, key.rpartition("/")[0])
    if basename in parent.files():
        return {basename: parent}
    below = Store(client, bucket, key).list("")
    if not below:
        raise InvalidInputError(f"{what}: there is no object {url}; correct it in the configuration")
    if odd := [path for path in below if not is_name(path)]:
        raise InvalidInputError(f"{what}: {url} holds {odd[0]!r}, which is no name of a file in a folder; rename it")
    return {f"{basename}/{path}": S3Source(client, bucket, f"{key}/{path}".rpartition("/")[0]) for path in below}


def copy_task(store: Store, name: str, staged: Staged) -> JSON:
    """Copy a task's data and plug-in; their files, sizes and digests.

    Args:
        store: Objects of the evolution.
        name: Name of the task in the configuration.
        staged: The task's files, as `find_task` found them.
    """
    data = {key: _copy(store, f"{layout.task(name)}/data/{key}", key, where) for key, where in staged.data.items()}
    found: dict[str, JSON] = {"data": {"digest": digest(data), "files": data}, "plugin": None}
    for key, where in staged.plugin.items():
        found["plugin"] = _copy(store, f"{layout.task(name)}/plugin.py", key, where)
    return found


def _copy(store: Store, key: str, path: str, where: Path | S3Source) -> JSON:
    """Copy the file of this path, which `where` is or holds; task data are small enough to be read whole."""
    data = content(path, where)
    store.put(key, data)
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def content(path: str, where: Path | S3Source) -> bytes:
    """The bytes of a task's file or of a plug-in, which are small enough to be read whole.

    Args:
        path: Ends in the file's name.
        where: The file, or the folder in S3 that holds it.

    Raises:
        InvalidInputError: it is too large.
    """
    name = path.rsplit("/", 1)[-1]
    try:
        if isinstance(where, Path):
            return read_file(where)
        if (size := where.files()[name]) > DATA_BYTES:
            raise ValueError(f"it has {size:,} bytes, and at most {DATA_BYTES:,} are read")
    except ValueError as error:
        raise InvalidInputError(f"{path} of a task or a plug-in: {error}; use a smaller file") from error
    return bytes(where.read_range(name, 0, size))
