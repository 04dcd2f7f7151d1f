"""Bringing the models, data and plug-ins of this machine to S3, for a cluster's seeding to read.

They lie under EVOLUTION/sources until HEAD is there: update_archives removes them with what else is needed no more, so
that whoever is killed when, they go. What seeding copies does not depend on where it read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cycleqd.loading import is_file
from cycleqd.progress import Bar
from cycleqd.search.config import Config, parse
from cycleqd.storage import layout
from cycleqd.storage.objects import Store, file_sha256
from cycleqd.storage.staging import find_task, given, open_inputs, parts
from cycleqd.weights.local import LocalSource


def bring(config: Config, store: Store, bar: Bar) -> Config:
    """Upload what is not there yet; the configuration that names the copies. Nothing must be seeding at the time.

    Args:
        config: It names models, data and plug-ins, some on this machine.
        store: The evolution.
        bar: Shows the bytes that are uploaded.

    Raises:
        InvalidInputError: Something that it names is not on this machine either.
    """
    files, tree = _local(config, store)
    store.delete(set(store.list(layout.SOURCES)) - set(files))
    missing = {key: path for key, path in files.items() if not _there(store, key, path)}
    if missing:
        with bar("uploading models and data", sum(path.stat().st_size for path in missing.values())) as advance:
            for key, path in missing.items():
                store.put_file(key, path, advance)
    if not files:
        return config
    brought = parse(tree, "the configuration").model_copy(update={"place": config.place})
    return _with_operators(brought, store)


def _with_operators(config: Config, store: Store) -> Config:
    """The configuration with URLs in the place of operators' files; an operator is validated before, from its file."""
    changes = {
        key: operator.model_copy(update={"kind": store.url(f"{layout.SOURCES}/{operator.stored}")})
        for key, operator in config.method.operators.items()
        if operator.file
    }
    return config.model_copy(update={"method": config.method.model_copy(update=changes)})


def _there(store: Store, key: str, path: Path) -> bool:
    found = store.carried(key)
    return found is not None and found[0] == path.stat().st_size and found[1] == file_sha256(path)


def _local(config: Config, store: Store) -> tuple[dict[str, Path], dict[str, Any]]:
    """Key → file of what the configuration names on this machine; and the configuration with URLs in their place."""
    tree = config.model_dump(mode="json", by_alias=True)
    files: dict[str, Path] = {}

    opened = open_inputs(store.client, config)
    urls = {}
    for model, path in given(config).items():
        urls[model] = path
        if not path.startswith("s3://"):
            folder = f"{layout.SOURCES}/models/{model}"
            source = opened[model].source
            assert isinstance(source, LocalSource), "it is on this machine"
            files |= {f"{folder}/{name}": source.folder / name for name in parts(opened[model])}
            urls[model] = store.url(folder)
    tree["models"]["base"] = urls.pop("base")
    for name, url in zip(config.models.experts, urls.values(), strict=True):
        tree["models"]["experts"][name]["path"] = url
    for name, task in config.tasks.items():
        found, folder = find_task(store.client, name, task), f"{layout.SOURCES}/{layout.task(name)}"
        data = {f"{folder}/data/{key}": path for key, path in found.data.items() if isinstance(path, Path)}
        plugin = {f"{folder}/{key}": path for key, path in found.plugin.items() if isinstance(path, Path)}
        files |= data | plugin
        if data:
            tree["tasks"][name]["data"] = store.url(f"{folder}/data/{Path(task.data).name}")
        for key in plugin:
            tree["tasks"][name]["class"] = f"{store.url(key)}:{task.class_.rpartition(':')[2]}"
    for key, file in config.own_files.items():
        if not file.startswith("s3://"):
            files[f"{layout.SOURCES}/{key}"] = Path(file)
    engine = config.evaluation.engine
    if is_file(engine) and not engine.startswith("s3://"):
        tree["evaluation"]["engine"] = store.url(f"{layout.SOURCES}/{config.evaluation.stored_engine}")
    return files, tree
