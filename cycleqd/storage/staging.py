"""Finding an evolution's inputs (folders, files, s3:// URLs), checking them, copying them to S3."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import InvalidInputError
from cycleqd.loading import is_file
from cycleqd.search.config import Config, Task
from cycleqd.search.records import JSON, digest
from cycleqd.storage import layout
from cycleqd.storage.checkpoints import S3Source
from cycleqd.storage.models import sink
from cycleqd.storage.objects import Store
from cycleqd.weights.checkpoint import Checkpoint, open_checkpoint
from cycleqd.weights.compatibility import refuse_problems
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import FileEntry, Manifest
from cycleqd.weights.protocols import Buffer, Source

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PIECE = 16 << 20
_COMPANIONS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_NOTICES = ("LICENSE", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class Staged:
    """A task's files, found but not copied. data: path below tasks/NAME/data/ → source. No plugin: installed code."""

    data: Mapping[str, Path | S3Source]
    plugin: Mapping[str, Path | S3Source]


def open_inputs(client: S3Client, config: Config) -> dict[str, Checkpoint]:
    """Base and experts by model id, opened and found to fit together. Only headers, configs and tokenizers are read."""
    paths = {"base": config.models.base} | {f"expert-{n}": e.path for n, e in config.models.experts.items()}
    opened = {model: open_checkpoint(find_source(client, path)) for model, path in paths.items()}
    refuse_problems(opened["base"], [checkpoint for model, checkpoint in opened.items() if model != "base"])
    return opened


def find_source(client: S3Client, path: str) -> Source:
    """A checkpoint folder of this machine or below an s3:// URL."""
    if path.startswith("s3://"):
        bucket, _, prefix = path.removeprefix("s3://").partition("/")
        return S3Source(client, bucket, prefix)
    return LocalSource(path)


def copy_checkpoint(store: Store, model: str, checkpoint: Checkpoint) -> Manifest:
    """Copy what belongs to a checkpoint."""
    target, files = sink(store, layout.checkpoint(model)), {}
    for name, size in parts(checkpoint).items():
        with ExitStack() as stack:
            writer = target.create(name, size)
            stack.callback(writer.abort)
            for piece in _pieces(checkpoint.source, name, size):
                writer.write(piece)
            files[name] = FileEntry(size, writer.close())
            stack.pop_all()
    return Manifest(files)


def parts(checkpoint: Checkpoint) -> dict[str, int]:
    """Files and sizes of what belongs to it: its shards, configuration, tokenizer, code and licence; nothing else."""
    shards = {tensor.file for tensor in checkpoint.tensors.values()}
    return {
        name: size
        for name, size in sorted(checkpoint.sizes.items())
        if name in shards or name.endswith(_COMPANIONS) or name.startswith(_NOTICES)
    }


def _pieces(source: Source, name: str, size: int) -> Iterator[Buffer]:
    for start in range(0, size, _PIECE):
        yield source.read_range(name, start, min(start + _PIECE, size))


def find_task(client: S3Client, name: str, task: Task) -> Staged:
    """Where a task's data and plug-in are. Raises InvalidInputError when they are nowhere."""
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
    """A configuration's tree with files of operators and engine that it names in S3 brought into a folder, named there.

    An operator's settings are validated by its own class. Raises InvalidInputError when there is no such file.
    """
    method = dict(tree.get("method", {}))
    for key, value in method.items():
        kind = str(value.get("kind", "")) if isinstance(value, dict) else ""
        module, _, name = kind.rpartition(":")
        if is_file(kind) and module.startswith("s3://"):
            ((path, where),) = _find_plugin(client, f"method.{key}", module).items()
            copy = folder / f"{key}.py"
            copy.write_bytes(_content(path, where))
            method[key] = {**value, "kind": f"{copy}:{name}"}
    evaluation = dict(tree.get("evaluation", {}))
    module, _, name = str(evaluation.get("engine", "")).rpartition(":")
    if module.startswith("s3://"):
        ((path, where),) = _find_plugin(client, "evaluation.engine", module).items()
        copy = folder / "engine.py"
        copy.write_bytes(_content(path, where))
        evaluation["engine"] = f"{copy}:{name}"
    return {**tree, "method": method, "evaluation": evaluation}


def copy_operators(store: Store, config: Config) -> None:
    """Copy the files of a user's own operators and engine to where the frozen configuration says that they are."""
    for operator in config.method.operators.values():
        if operator.file:
            store.put(operator.stored.rpartition(":")[0], Path(operator.file).read_bytes())
    if is_file(config.evaluation.engine):
        path = Path(config.evaluation.engine.rpartition(":")[0])
        store.put(config.evaluation.stored_engine.rpartition(":")[0], path.read_bytes())


def _remote(client: S3Client, what: str, url: str, basename: str) -> dict[str, Path | S3Source]:
    """An object or everything below a prefix."""
    bucket, _, key = url.removeprefix("s3://").rstrip("/").partition("/")
    parent = S3Source(client, bucket, key.rpartition("/")[0])
    if basename in parent.files():
        return {basename: parent}
    below = Store(client, bucket, key).list("")
    if not below:
        raise InvalidInputError(f"{what}: there is no object {url}; correct it in the configuration")
    return {f"{basename}/{path}": S3Source(client, bucket, f"{key}/{path}".rpartition("/")[0]) for path in below}


def copy_task(store: Store, name: str, staged: Staged) -> JSON:
    """Copy a task's data and plug-in; their files, sizes and digests."""
    data = {key: _copy(store, f"{layout.task(name)}/data/{key}", key, where) for key, where in staged.data.items()}
    found: dict[str, JSON] = {"data": {"digest": digest(data), "files": data}, "plugin": None}
    for key, where in staged.plugin.items():
        found["plugin"] = _copy(store, f"{layout.task(name)}/plugin.py", key, where)
    return found


def _copy(store: Store, key: str, path: str, where: Path | S3Source) -> JSON:
    """Copy the file of this path, which `where` is or holds; task data are small enough to be read whole."""
    content = _content(path, where)
    store.put(key, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _content(path: str, where: Path | S3Source) -> bytes:
    name = path.rsplit("/", 1)[-1]
    return where.read_bytes() if isinstance(where, Path) else bytes(where.read_range(name, 0, where.files()[name]))
