"""MLflow: an experiment an evolution; nested runs for the evolution, its generations, its models.

Everything here may be repeated: runs are found again by a tag that names them, parameters and tags are written with the
same values, and a metric's point carries the time of the record it comes from, so that MLflow stores it once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cycleqd.errors import ConflictError, UnavailableError
from cycleqd.storage.formats import encode
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Metric, Param, Run, RunTag

KEY = "cycleqd.key"
"""Tag: what a run stands for, unique in its experiment: "evolution", "generation:000012", "model:g000012-c00"."""

NOTE = "mlflow.note.content"
"""Tag: the description that MLflow's pages show, in Markdown."""

URL = "cycleqd.url"
"""Tag of an experiment: where the evolution's objects are."""

_PARENT = "mlflow.parentRunId"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the pages open on runs, not on traces
_DEFAULTS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # What is not logged now is logged later: a task that holds a GPU waits half a minute for a server, not four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_PART = 400  # entities a request; MLflow takes 1000, and 100 params or tags


@dataclass(frozen=True)
class NewRun:
    """A run to be created: its key, displayed name, description (Markdown), tags and the key of its parent.

    `started`: when what it stands for began, in milliseconds since the epoch, from a record.
    """

    key: str
    name: str
    description: str
    started: int
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None


class Tracker:
    """The MLflow server, as far as an evolution needs it. Failures are UnavailableError after MLflow's own retries."""

    def __init__(self, settings: Settings) -> None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self.uri = settings.tracking
        with self.reported():
            from mlflow import MlflowClient

            self.client: MlflowClient = MlflowClient(settings.tracking)

    def experiment(self, store: Store, description: str) -> str:
        """The id of the evolution's experiment, created when missing.

        Args:
            store: Objects of the evolution, whose name is the experiment's.
            description: Markdown.

        Raises:
            ConflictError: the name belongs to another evolution or was deleted.
        """
        from mlflow.exceptions import MlflowException

        url = store.url("").rstrip("/")
        with self.reported():
            found = self.client.get_experiment_by_name(store.evolution)
            if found is None:
                try:
                    tags = {URL: url, NOTE: description, **_KIND}
                    return str(self.client.create_experiment(store.evolution, tags=tags))
                except MlflowException as error:
                    found = self.client.get_experiment_by_name(store.evolution)  # another process was faster
                    if found is None:
                        raise error
            if found.lifecycle_stage != "active" or found.tags.get(URL) != url:
                raise ConflictError(
                    f"MLflow experiment '{store.evolution}' at {self.uri} is deleted or belongs to"
                    f" {found.tags.get(URL, 'something else')}, not to {url}; rename the evolution or the experiment"
                )
            return str(found.experiment_id)

    def describe(self, experiment: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment.

        Args:
            experiment: Id of the experiment.
            tags: By name.
        """
        with self.reported():
            for name, value in tags.items():
                self.client.set_experiment_tag(experiment, name, value)

    def create_runs(self, store: Store, key: str, experiment: str, wanted: Sequence[NewRun], parents: Ids) -> Ids:
        """Create runs and store their ids, once: by a conditional write that one process wins.

        A run that a killed process created without storing its id is found by its tags and taken over. All others of
        these keys are deleted: another process' that was slower, and what MLflow's client created twice for an answer
        that was lost.

        Args:
            store: Objects of the evolution.
            key: Where the ids are stored, relative to the evolution.
            experiment: Id of the experiment.
            wanted: The runs, parents before their children.
            parents: Runs that exist already and may be parents.
        """
        if load_ids(store, key) is None:
            created = dict(parents.runs)
            for run in wanted:
                created[run.key] = self._find_or_create(experiment, run, created)
            mine = {run.key: created[run.key] for run in wanted}
            store.create(key, encode({"experiment": experiment, "runs": mine}))
        stored = load_ids(store, key)
        assert stored is not None, "it was there, or has been created"
        self._delete_others(stored)
        return stored

    def _find_or_create(self, experiment: str, run: NewRun, created: Mapping[str, str]) -> str:
        tags = {KEY: run.key, NOTE: run.description, **run.tags}
        named = f"tags.`{KEY}` = '{run.key}'"
        if run.parent is not None:
            # Taken over under its own parent only: of two processes at once, one deletes its parent and all below.
            tags[_PARENT] = created[run.parent]
            named += f" AND tags.`{_PARENT}` = '{created[run.parent]}'"
        with self.reported():
            found = self.client.search_runs([experiment], named, order_by=["attributes.start_time ASC"], max_results=1)
            if found:
                return str(found[0].info.run_id)
            return str(self.client.create_run(experiment, run.started, tags, run.name).info.run_id)

    def _delete_others(self, stored: Ids) -> None:
        with self.reported():
            for name, run_id in stored.runs.items():
                for run in self.client.search_runs([stored.experiment], f"tags.`{KEY}` = '{name}'"):
                    if run.info.run_id != run_id:
                        self.client.delete_run(run.info.run_id)

    def tags(self, run: str) -> dict[str, str]:
        """A run's tags.

        Args:
            run: Id of the run.

        Raises:
            UnavailableError: there is no such run.
        """
        with self.reported():
            return dict(self.client.get_run(run).data.tags)

    def search(self, experiment: str, condition: str) -> list[Run]:
        """An experiment's runs that meet a condition.

        Args:
            experiment: Id of the experiment.
            condition: In MLflow's filter language.
        """
        found: list[Run] = []
        token: str | None = ""
        with self.reported():
            while token is not None:
                page = self.client.search_runs([experiment], condition, page_token=token or None)
                found += page
                token = page.token or None
        return found

    def log(
        self,
        run: str,
        *,
        time: int,
        step: int = 0,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        model: str | None = None,
    ) -> None:
        """Log to a run.

        Args:
            run: Id of the run.
            time: Milliseconds since the epoch, of the record that the metrics come from, so that repeating adds no
                point.
            step: Step of the metrics: the snapshot.
            metrics: By name.
            params: By name; MLflow refuses to change one.
            tags: By name.
            model: Id of the logged model that the metrics are of, too.
        """
        from mlflow.entities import Metric, Param, RunTag

        points = [
            Metric(name, float(value), time, step, model_id=model) for name, value in sorted((metrics or {}).items())
        ]
        settings = [Param(name, str(value)) for name, value in sorted((params or {}).items())]
        labels = [RunTag(name, str(value)) for name, value in sorted((tags or {}).items())]
        with self.reported():
            for start in range(0, max(len(points), 1), _PART):
                first = start == 0
                self._log_batch(run, points[start : start + _PART], settings if first else (), labels if first else ())

    def _log_batch(self, run: str, points: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]) -> None:
        """Once more where another process inserts the same parameters now: MLflow fails, but for metrics and tags."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_batch(run, points, params, tags)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            self.client.log_batch(run, points, params, tags)

    def data(self, run: str, datasets: Sequence[Dataset], context: str) -> None:
        """Name the datasets that a run used; those that it names already are left as they are.

        Args:
            run: Id of the run.
            datasets: Their names, digests and sources.
            context: What they were used for.
        """
        from mlflow.entities import DatasetInput, InputTag

        used = [DatasetInput(one, [InputTag("mlflow.data.context", context)]) for one in datasets]
        with self.reported():
            self.client.log_inputs(run, used)

    def text(self, run: str, path: str, text: str) -> None:
        """Store a text as an artifact; the same path is overwritten.

        Args:
            run: Id of the run.
            path: Of the artifact.
            text: Its content.
        """
        with self.reported():
            self.client.log_text(run, text, path)

    def picture(self, run: str, path: str, png: bytes) -> None:
        """Store a picture as an artifact; the same path is overwritten.

        Args:
            run: Id of the run.
            path: Of the artifact.
            png: Its content.
        """
        folder, _, name = path.rpartition("/")
        with self.reported(), tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(png)
            self.client.log_artifact(run, str(file), folder)

    def files(self, run: str, folder: Path, path: str) -> None:
        """Store a folder's files as artifacts; the same paths are overwritten.

        Args:
            run: Id of the run.
            folder: Where the files are.
            path: Of the folder that the artifacts are in.
        """
        with self.reported():
            self.client.log_artifacts(run, str(folder), path)

    def end(self, run: str, moment: int, status: str = "FINISHED") -> None:
        """End a run.

        Args:
            run: Id of the run.
            moment: Milliseconds since the epoch, from the record of what ended.
            status: MLflow's.
        """
        with self.reported():
            self.client.set_terminated(run, status, moment)

    def resume(self, run: str) -> None:
        """Say that a run that had ended goes on.

        Args:
            run: Id of the run.
        """
        with self.reported():
            self.client.update_run(run, "RUNNING")

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn what MLflow's client raises into one sentence: for artifacts also its transport's errors, OSErrors."""
        try:
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UnavailableError("mlflow is not installed; pip install 'cycleqd[tracking]'") from error
        try:
            yield
        except (MlflowException, OSError) as error:
            sentence = " ".join(str(error).split())[:400]
            raise UnavailableError(
                f"MLflow at {self.uri} failed ({sentence}); check MLFLOW_TRACKING_URI and the server"
            ) from error


@dataclass(frozen=True)
class Ids:
    """The experiment and run ids that a stage created: key → run id."""

    experiment: str
    runs: Mapping[str, str] = field(default_factory=dict)


def load_ids(store: Store, key: str) -> Ids | None:
    """Stored ids, None when none were stored.

    Args:
        store: Objects of the evolution.
        key: Where they are stored, relative to the evolution.
    """
    found = store.find_json(key)
    return None if found is None else Ids(found["experiment"], found["runs"])
