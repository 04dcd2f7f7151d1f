"""What a run was compiled from, which it keeps however often it is retried, against what would be compiled now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cycleqd.errors import InvalidInputError
from cycleqd.run.decisions import Run
from cycleqd.run.kubeflow.client import Kubeflow
from cycleqd.run.kubeflow.refusals import MissingError
from cycleqd.run.kubeflow.replies import short
from cycleqd.run.steps import Step, arguments, find_state
from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.objects import Store
from cycleqd.storage.parameters import is_name, look_up
from pipelines.definitions import Kind

if TYPE_CHECKING:
    from kfp_server_api import V2beta1PipelineVersion, V2beta1Run

Source = tuple[str, str]
"""Ids of a pipeline and of its version."""
_ELSEWHERE = frozenset({"runner", "services", "folder", "endpoint", "tls_ca", "retries", "parallelism", "images"})
"""Keys of the place that tell a run's tasks nothing; and its images, which are compared as they were compiled."""
_PATHS = {"config": "", "profile": "place"}
"""Where in a configuration the values that parameters name are."""
_SHOWN, _LONGEST = 4, 80


@dataclass(frozen=True)
class Compiled:
    """`source`: the version's, None for a run that has none. `account`: the service account, "" where KFP chooses."""

    source: Source | None
    parameters: Mapping[str, Any]
    account: str

    @classmethod
    def of(cls, run: V2beta1Run) -> Compiled:
        """What a run has.

        Args:
            run: As KFP describes it.
        """
        reference, given = run.pipeline_version_reference, run.runtime_config
        source = (str(reference.pipeline_id), str(reference.pipeline_version_id)) if reference else None
        return cls(source, dict((given.parameters if given else None) or {}), str(run.service_account or ""))


class Changes:
    """What has changed since runs of an evolution were compiled; it is looked for once a run."""

    def __init__(
        self, config: Config, store: Store, kubeflow: Kubeflow, version: Callable[[Kind, int], Source]
    ) -> None:
        """Look at nothing yet.

        Args:
            config: The evolution's, as a new run would have it.
            store: The evolution.
            kubeflow: Where its runs are.
            version: Makes what is compiled now, of a kind and a count of generations, a version.
        """
        self.config, self.store, self.kubeflow, self.version = config, store, kubeflow, version
        self._found: dict[str, str] = {}

    def of(self, run: Run) -> str:
        """What differs, as a part of a sentence; "" for nothing, and for a run of which nothing is known.

        Args:
            run: Of a step.
        """
        if run.id not in self._found:
            self._found[run.id] = self._compare(run)
        return self._found[run.id]

    def _compare(self, run: Run) -> str:
        step, then = Step.named(run.name), Compiled.of(self.kubeflow.get_run(run.id))
        if step is None or then.source is None:
            return ""
        state = find_state(self.store)
        given = arguments(self.config, self.store, step, state)
        if step.kind == "seeding" and state is not None:  # what it was to read is frozen
            given["config"] = then.parameters.get("config")
        now = Compiled(self.version(step.kind, step.count), given, self.config.place.service_account)
        try:
            return changed(then, now, self.kubeflow.get_version, self.store)
        except MissingError:
            return "the pipeline's version was deleted"


def images(version: V2beta1PipelineVersion) -> dict[str, str]:
    """The image of each task of a compiled pipeline.

    Args:
        version: The pipeline's.
    """
    found = version.pipeline_spec or {}  # beside the platform's, where there is one
    executors = found.get("pipeline_spec", found).get("deploymentSpec", {}).get("executors", {})
    return {label: str(one["container"]["image"]) for label, one in executors.items() if "container" in one}


def changed(then: Compiled, now: Compiled, read: Callable[[Source], V2beta1PipelineVersion], store: Store) -> str:
    """What differs, as a part of a sentence; "" for nothing, and for a run of which nothing is known.

    Args:
        then: The run's.
        now: What a new run of the same step would have.
        read: Gets a version.
        store: The evolution, which holds what parameters name; inputs of this machine were brought there, and are known
            here by their paths.
    """
    if then.source is None or now.source is None:
        return ""
    words = []
    if then.source != now.source:
        old, new = images(read(then.source)), images(read(now.source))
        pairs = {(old[label], new[label]) for label in old.keys() & new.keys() if old[label] != new[label]}
        words = [f"image {before} → {after}" for before, after in sorted(pairs)]
    for name in sorted(then.parameters.keys() | now.parameters.keys()):
        values = _meant(store, then.parameters.get(name)), _meant(store, now.parameters.get(name))
        words += _differing(_PATHS.get(name, name), *values, store.url(layout.SOURCES))
    if now.account and now.account != then.account:
        words.append(f"place.service_account {then.account} → {now.account}")
    if then.source != now.source and not words:
        words = ["the pipeline's definition"]
    return ", ".join([*words[:_SHOWN], *(["…"] if len(words) > _SHOWN else [])])


def _meant(store: Store, value: Any) -> Any:
    """A parameter, or what it names in S3 where that is still there."""
    with suppress(InvalidInputError):
        if isinstance(value, str) and is_name(value):
            return look_up(store, value)
    return value


def _differing(path: str, then: Any, now: Any, sources: str) -> Iterator[str]:
    """The keys, with both values, at which trees differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            if not (path == "place" and key in _ELSEWHERE):
                yield from _differing(f"{path}.{key}".strip("."), then.get(key), now.get(key), sources)
    elif then != now and not _brought(then, now, sources):
        yield f"{path} {_shown(then)} → {_shown(now)}"


def _brought(then: Any, now: Any, sources: str) -> bool:
    """Whether a run reads the copy of what this machine names by its path."""
    texts = isinstance(then, str) and isinstance(now, str)
    return texts and then.startswith(f"{sources}/") and not now.startswith("s3://")


def _shown(value: Any) -> str:
    text = short(value if isinstance(value, str) else json.dumps(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
