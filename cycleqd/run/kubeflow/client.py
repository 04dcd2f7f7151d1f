"""A Kubeflow Pipelines server: its REST API (v2beta1), as the kfp SDK's generated client speaks it.

Not kfp.Client: that asks for health five times over before it says that nothing answers, waits for ever on a server
that hangs, writes a file into the home folder and takes its namespace from there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cycleqd.errors import ConflictError, InvalidInputError, UnavailableError
from cycleqd.run.kubeflow.endpoint import ENDPOINT, TOKEN, configure
from cycleqd.run.kubeflow.refusals import ExistsError, MissingError, refused, untrusted
from cycleqd.run.kubeflow.replies import short
from cycleqd.search.place import Place

if TYPE_CHECKING:
    from kfp_server_api import ApiClient, V2beta1PipelineVersion, V2beta1RecurringRun, V2beta1Run

UI_ENDPOINT = "KF_PIPELINES_UI_ENDPOINT"
TESTED = "2.17"
_TIMEOUT = (5, 30)  # seconds to connect, to read
_PAGE = 100


class Kubeflow:
    """A server that answers. `namespace`: where runs live, None where the server serves one user and knows none.

    Every failure is one sentence: UnavailableError when the server does not answer or says that it cannot just now,
    InvalidInputError for what is wrong with credentials or settings, ConflictError for what it refuses.
    """

    def __init__(self, place: Place) -> None:
        """Connect. Raises UnavailableError, and InvalidInputError for a server that is no KFP 2."""
        import kfp_server_api as api

        self._api = api
        configuration = configure(place)
        self.where: str = configuration.host
        self._wanted = place.namespace
        self._client: ApiClient = api.ApiClient(configuration)
        self._runs = api.RunServiceApi(self._client)
        self._experiments = api.ExperimentServiceApi(self._client)
        self._pipelines = api.PipelineServiceApi(self._client)
        self._uploads = api.PipelineUploadServiceApi(self._client)
        self._schedules = api.RecurringRunServiceApi(self._client)
        health = self._health()
        self.version: str = str(health.get("tag_name") or "unknown")
        self.namespace: str | None = place.namespace if health.get("multi_user") else None
        if self.version.lstrip("v").startswith(("0.", "1.")):
            raise InvalidInputError(
                f"{self.where} is Kubeflow Pipelines {self.version}; version 2 is needed (tried: {TESTED})"
            )

    def _health(self) -> Mapping[str, Any]:
        try:
            found = self._ask(
                self._client.call_api,
                "/apis/v2beta1/healthz",
                "GET",
                response_type="object",
                auth_settings=["Bearer"],
                _return_http_data_only=True,
            )
        except MissingError:
            found = None
        if not isinstance(found, dict):
            raise InvalidInputError(
                f"{self.where} answers, but not as the API of Kubeflow Pipelines 2 (a login page, another server, or"
                f" version 1); correct place.endpoint or {ENDPOINT}, and give a token as {TOKEN} where one is wanted"
            )
        return found

    def url(self, run_id: str) -> str:
        """The run's page.

        Args:
            run_id: The run's id.
        """
        return f"{os.environ.get(UI_ENDPOINT, self.where).rstrip('/')}/#/runs/details/{run_id}"

    def find_experiment(self, name: str) -> str | None:
        """The id of an experiment, None when there is none.

        Args:
            name: As it is displayed.
        """
        found = self._find(self._experiments.experiment_service_list_experiments, "experiments", name)
        return None if found is None else str(found.experiment_id)

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made unless it exists.

        Args:
            name: As it is displayed.
        """
        wanted = self._api.V2beta1Experiment(display_name=name, namespace=self.namespace)
        return self._find_or_make(
            lambda: self.find_experiment(name),
            lambda: self._ask(self._experiments.experiment_service_create_experiment, wanted),
            f"{self.where} has an experiment '{name}' that is not listed; is it archived?",
        )

    def version_of(self, pipeline: str, version: str, package: Path) -> tuple[str, str]:
        """Ids of a pipeline and of its version; whichever is missing is made. Another commit's version of the same
        definition is that version.

        Args:
            pipeline: The pipeline's name.
            version: The version's name, which ends in a word of what the package holds.
            package: The compiled pipeline, a YAML file.
        """
        wanted = self._api.V2beta1Pipeline(name=pipeline, display_name=pipeline, namespace=self.namespace)
        pipeline_id = self._find_or_make(
            lambda: self._pipeline(pipeline),
            lambda: self._ask(self._pipelines.pipeline_service_create_pipeline, wanted),
            f"{self.where} has a pipeline '{pipeline}' that is not listed; look at its page",
        )
        upload, options = self._uploads.upload_pipeline_version, {"name": version, "pipelineid": pipeline_id}
        return pipeline_id, self._find_or_make(
            lambda: self._version(pipeline_id, version),
            lambda: self._ask(upload, str(package), **options),
            f"version {version} of pipeline '{pipeline}' was uploaded, but is not at {self.where}",
        )

    def _find_or_make(self, find: Callable[[], str | None], make: Callable[[], object], lost: str) -> str:
        """The id of what is made unless it is found. Raises ConflictError with `lost` where even that is not listed."""
        found = find()
        if found is None:
            with contextlib.suppress(ExistsError):  # somebody was faster
                make()
            found = find()
        if found is None:
            raise ConflictError(lost)
        return found

    def _pipeline(self, name: str) -> str | None:
        found = self._find(self._pipelines.pipeline_service_list_pipelines, "pipelines", name)
        return None if found is None else str(found.pipeline_id)

    def _version(self, pipeline_id: str, name: str) -> str | None:
        call = self._pipelines.pipeline_service_list_pipeline_versions
        content, found = name.rpartition(" ")[2], self._pages(call, "pipeline_versions", pipeline_id)
        same = (version for version in found if str(version.display_name).endswith(content))
        return next((str(version.pipeline_version_id) for version in same), None)

    def get_version(self, source: tuple[str, str]) -> V2beta1PipelineVersion:
        """A pipeline's version with what it was compiled to.

        Args:
            source: Ids of the pipeline and of its version.

        Raises:
            MissingError: The version was deleted.
        """
        return self._ask(self._pipelines.pipeline_service_get_pipeline_version, *source)

    def create_run(self, experiment: str, name: str, source: tuple[str, str], body: Mapping[str, Any]) -> V2beta1Run:
        """Start a run of a pipeline's version.

        Args:
            experiment: The experiment's id.
            name: As it is displayed.
            source: Ids of the pipeline and of its version.
            body: runtime_config and service_account.
        """
        api = self._api
        reference = api.V2beta1PipelineVersionReference(*source)
        run = api.V2beta1Run(experiment_id=experiment, display_name=name, pipeline_version_reference=reference, **body)
        return self._ask(self._runs.run_service_create_run, run)

    def get_run(self, run_id: str) -> V2beta1Run:
        """A run with the details of its tasks.

        Args:
            run_id: The run's id.

        Raises:
            MissingError: There is no run of that id.
        """
        return self._ask(self._runs.run_service_get_run, run_id)

    def runs(self, experiment: str, name: str | None = None) -> Iterator[V2beta1Run]:
        """The experiment's runs, the newest first; those that were archived are left out.

        Args:
            experiment: The experiment's id.
            name: Only runs of this displayed name.
        """
        options = {"filter": named(name)} if name else {}
        call = self._runs.run_service_list_runs
        for run in self._pages(call, "runs", experiment_id=experiment, sort_by="created_at desc", **options):
            if run.storage_state != "ARCHIVED" and name in (None, run.display_name):
                yield run

    def retry(self, run_id: str) -> None:
        """Ask for the failed tasks, and what follows them, to run again in the same run.

        Args:
            run_id: The run's id.
        """
        self._ask(self._runs.run_service_retry_run, run_id)

    def terminate(self, run_id: str) -> None:
        """Ask for a run's end.

        Args:
            run_id: The run's id.
        """
        self._ask(self._runs.run_service_terminate_run, run_id)

    def archive(self, run_id: str) -> None:
        """Take a run out of the lists, whatever its state is.

        Args:
            run_id: The run's id.
        """
        self._ask(self._runs.run_service_archive_run, run_id)

    def schedules(self, experiment: str, name: str) -> list[V2beta1RecurringRun]:
        """The recurring runs of a name.

        Args:
            experiment: The experiment's id.
            name: As they are displayed.
        """
        call = self._schedules.recurring_run_service_list_recurring_runs
        found = self._pages(call, "recurring_runs", experiment_id=experiment, filter=named(name))
        return [schedule for schedule in found if schedule.display_name == name]

    def create_schedule(
        self, experiment: str, name: str, source: tuple[str, str], cron: str, body: Mapping[str, Any]
    ) -> V2beta1RecurringRun:
        """Have runs started by the clock: one at a time, missed ones dropped.

        Args:
            experiment: The experiment's id.
            name: As it is displayed.
            source: Ids of the pipeline and of its version.
            cron: Six fields, seconds first.
            body: runtime_config, service_account and description.
        """
        api = self._api
        schedule = api.V2beta1RecurringRun(
            experiment_id=experiment,
            display_name=name,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(*source),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron=cron)),
            max_concurrency="1",
            no_catchup=True,
            mode="ENABLE",
            **body,
        )
        return self._ask(self._schedules.recurring_run_service_create_recurring_run, schedule)

    def disable_schedule(self, schedule_id: str) -> None:
        """Have a recurring run start nothing more. One that is gone is no error.

        Args:
            schedule_id: The recurring run's id.
        """
        with contextlib.suppress(MissingError):
            self._ask(self._schedules.recurring_run_service_disable_recurring_run, schedule_id)

    def delete_schedule(self, schedule_id: str) -> None:
        """Remove a recurring run. One that is gone is no error.

        Kubernetes then collects the workflows that it owns, those of servers that do not know "ORPHAN" in flight, too.

        Args:
            schedule_id: The recurring run's id.
        """
        delete = self._schedules.recurring_run_service_delete_recurring_run
        with contextlib.suppress(MissingError):
            self._ask(delete, schedule_id, propagation_policy="ORPHAN")

    def _find(self, call: Callable[..., Any], kind: str, name: str) -> Any | None:
        options = {"namespace": self.namespace} if self.namespace else {}
        found = self._pages(call, kind, filter=named(name), **options)
        return next((one for one in found if one.display_name == name), None)

    def _pages(self, call: Callable[..., Any], kind: str, *given: str, **options: str) -> Iterator[Any]:
        token = ""
        while True:
            page = self._ask(call, *given, page_size=_PAGE, page_token=token, **options)
            yield from getattr(page, kind) or []
            token = page.next_page_token
            if not token:
                return

    def _ask(self, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError, SSLError

        try:
            return call(*given, _request_timeout=_TIMEOUT, **options)
        except ApiException as error:
            raise refused(error, self.where, self._wanted) from error
        except (HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error  # what the last of the attempts met
            if isinstance(cause, SSLError):
                raise untrusted(cause, self.where) from error
            raise UnavailableError(
                f"Kubeflow Pipelines does not answer at {self.where} ({short(cause)}); give its address as --endpoint,"
                f" place.endpoint or {ENDPOINT}, and see that a port-forward to it is up"
            ) from error


def named(name: str) -> str:
    """The filter of lists for a display name.

    Args:
        name: As it is displayed.
    """
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
