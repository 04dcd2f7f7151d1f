"""What a stage learns from its environment: where S3, MLflow and the local disk are. Never a credential."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cycleqd.errors import InvalidInputError

CREDENTIALS = frozenset(
    {
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        "CYCLEQD_SERVER_KEY",
    }
)
"""Variables whose values are shown to nobody."""


@dataclass(frozen=True)
class Settings:
    """The environment of a stage. Credentials stay where boto3 and MLflow look for them themselves."""

    bucket: str
    endpoint: str | None
    region: str
    tracking: str
    cache: Path
    scratch: Path

    @property
    def cache_lasts(self) -> bool:
        """Whether the cache outlives the task: a pod's is in its scratch folder and is deleted with it."""
        return not self.cache.is_relative_to(self.scratch)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read CYCLEQD_BUCKET, AWS_ENDPOINT_URL, AWS_REGION, MLFLOW_TRACKING_URI, CYCLEQD_CACHE, CYCLEQD_SCRATCH.

        Args:
            environ: Environment variables.

        Raises:
            InvalidInputError: required variables are missing; it names all of them.
        """
        missing = [name for name in ("CYCLEQD_BUCKET", "MLFLOW_TRACKING_URI") if not environ.get(name)]
        if missing:
            raise InvalidInputError(
                f"the environment lacks {' and '.join(missing)}; set what S3 bucket and MLflow server are to be used"
            )
        folder = Path(tempfile.gettempdir())
        return cls(
            bucket=environ["CYCLEQD_BUCKET"],
            endpoint=environ.get("AWS_ENDPOINT_URL") or None,
            region=environ.get("AWS_REGION") or "us-east-1",
            tracking=environ["MLFLOW_TRACKING_URI"],
            cache=Path(environ.get("CYCLEQD_CACHE") or folder / "cycleqd-cache"),
            scratch=Path(environ.get("CYCLEQD_SCRATCH") or folder),
        )
