"""The options that commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cycleqd.cli.source import ConfigSource

Json = Annotated[bool, typer.Option("--json", help="Print data as JSON.")]
Model = Annotated[str, typer.Argument(help="A model id: base, expert-NAME, g000012-c00, final, naive; or best.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its step: generation-000003.")]
Base = Annotated[str, typer.Option(help="The base model: a Hugging Face folder, an s3:// prefix or hf://ORG/NAME.")]
Experts = Annotated[
    list[str],
    typer.Option(metavar="NAME=PATH:TASK", help="An expert and the task it was fine-tuned for; once for each."),
]
Tasks = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=DATA[,CLASS]",
        help="A task and its data; once for each. code, db and os are built in; others need file.py:Class.",
    ),
]
ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="CYCLEQD_CONFIG", help="The evolution's configuration file.")
]
Profile = Annotated[
    Path | None, typer.Option(envvar="CYCLEQD_PROFILE", help="A file of `place` keys laid over the configuration's.")
]
Endpoint = Annotated[str | None, typer.Option(help="URL of the KFP API, in place of place.endpoint.")]
Namespace = Annotated[str | None, typer.Option(help="Where runs execute, in place of place.namespace.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Replace a run that has ended instead of retrying it; what it finished stays.")
]
Limit = Annotated[int, typer.Option(min=0, help="Show so many; 0 is all.")]
DEFAULT = Path("cycleqd.yaml")


def from_files(config: ConfigFile = DEFAULT, profile: Profile = None) -> ConfigSource:
    """The configuration of --config and --profile.

    Args:
        config: The file.
        profile: A file of `place` keys laid over it.
    """
    return ConfigSource(config, profile)


def anywhere(
    config: ConfigFile = DEFAULT, profile: Profile = None, endpoint: Endpoint = None, namespace: Namespace = None
) -> ConfigSource:
    """The configuration of --config and --profile; on a cluster where --endpoint or --namespace names one.

    Args:
        config: The file.
        profile: A file of `place` keys laid over it.
        endpoint: URL of the KFP API; None leaves place.endpoint.
        namespace: Where runs execute; None leaves place.namespace.
    """
    runner = "kubeflow" if endpoint or namespace else None
    return ConfigSource(config, profile, {"runner": runner, "endpoint": endpoint, "namespace": namespace})


def on_cluster(
    config: ConfigFile = DEFAULT, profile: Profile = None, endpoint: Endpoint = None, namespace: Namespace = None
) -> ConfigSource:
    """As `anywhere`, and on a cluster whatever place.runner is.

    Args:
        config: The file.
        profile: A file of `place` keys laid over it.
        endpoint: URL of the KFP API; None leaves place.endpoint.
        namespace: Where runs execute; None leaves place.namespace.
    """
    return anywhere(config, profile, endpoint, namespace).changed(runner="kubeflow")


Source = Annotated[ConfigSource, from_files]
Cluster = Annotated[ConfigSource, on_cluster]
Anywhere = Annotated[ConfigSource, anywhere]
"""Parameters that a command gets by calling that function with its options: see `app.command`."""
