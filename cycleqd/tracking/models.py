"""MLflow's models: a logged model a checkpoint, and the versions of the final model in the registry.

No bytes are copied to MLflow: their tags lead to the files in S3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cycleqd.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

DIGEST = "cycleqd.digest"
"""Tag: the digest of a model's files; one logged model and one version have it."""


def find_model(tracker: Tracker, experiment: str, name: str, digest: str) -> str | None:
    """The id of a checkpoint's logged model, None when there is none.

    Args:
        tracker: The server.
        experiment: Id of the experiment.
        name: The model's id in the evolution.
        digest: Of the checkpoint.
    """
    found = _logged(tracker, experiment, name, digest)
    return found[0].model_id if found else None


def link_model(
    tracker: Tracker, experiment: str, run: str, name: str, digest: str, tags: Mapping[str, str], kind: str
) -> str:
    """Make a checkpoint a logged model that its run put out, once; the logged model's id.

    Of two processes that do so at once both take the older one.

    Args:
        tracker: The server.
        experiment: Id of the experiment.
        run: Id of the model's run.
        name: The model's id in the evolution.
        digest: Of the checkpoint.
        tags: What leads to the checkpoint.
        kind: What kind of model it is, as MLflow's pages show it.
    """
    with tracker.reported():
        if not _logged(tracker, experiment, name, digest):
            marked = {**tags, DIGEST: digest}
            tracker.client.create_logged_model(experiment, _name(name), run, marked, model_type=kind)
        first, *others = _logged(tracker, experiment, name, digest)
        for other in others:
            tracker.client.delete_logged_model(other.model_id)
        if first.status != "READY":
            tracker.client.finalize_logged_model(first.model_id, "READY")
        put_out(tracker, run, first.model_id)
        return str(first.model_id)


def _name(model: str) -> str:
    """A model id as MLflow takes it: "lambda-0_3"."""
    return model.replace(".", "_")


def _logged(tracker: Tracker, experiment: str, name: str, digest: str) -> list[LoggedModel]:
    """The logged models of a checkpoint, the oldest first."""
    wanted = f"name = '{_name(name)}' AND tags.`{DIGEST}` = '{digest}'"
    with tracker.reported():
        found = tracker.client.search_logged_models([experiment], wanted)
    return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))


def put_out(tracker: Tracker, run: str, model: str) -> None:
    """Link a run to a model that it put out, once: MLflow fails where that is done a second time.

    Args:
        tracker: The server.
        run: Id of the run.
        model: Id of the logged model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    with tracker.reported():
        if model in _outputs(tracker, run):
            return
        try:
            tracker.client.log_outputs(run, [LoggedModelOutput(model, 0)])
        except MlflowException:
            if model not in _outputs(tracker, run):  # no other process was faster
                raise


def _outputs(tracker: Tracker, run: str) -> list[str]:
    found = tracker.client.get_run(run).outputs
    return [output.model_id for output in found.model_outputs] if found else []


def register(
    tracker: Tracker, name: str, about: str, run: str, source: str, digest: str, tags: Mapping[str, str], model: str
) -> None:
    """Register a model's files as a version of a registered model, once, and let the alias `best` name it.

    Args:
        tracker: The server.
        name: The registered model.
        about: What it is, in Markdown.
        run: Id of the model's run.
        source: URL of the folder.
        digest: The files' digest: a version that has it in its tags is the one.
        tags: What leads from the version to S3 and to the lineage.
        model: Id of its logged model.
    """
    from mlflow.exceptions import MlflowException

    with tracker.reported():
        try:
            tracker.client.create_registered_model(name, description=about)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if not _versions(tracker, name, digest):
            marked = {**tags, DIGEST: digest}
            tracker.client.create_model_version(
                name, source, run, marked, description=about, await_creation_for=0, model_id=model
            )
        first, *others = _versions(tracker, name, digest)
        for other in others:
            tracker.client.delete_model_version(name, other.version)
        tracker.client.set_registered_model_alias(name, "best", first.version)


def _versions(tracker: Tracker, name: str, digest: str) -> list[ModelVersion]:
    """The versions that hold these files, the oldest first."""
    found = tracker.client.search_model_versions(f"name = '{name}'")
    return sorted((one for one in found if one.tags.get(DIGEST) == digest), key=lambda one: int(one.version))
