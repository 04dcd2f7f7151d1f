"""Where checkpoints are: folders and S3. Nothing is imported before it is needed: the parent of measured processes must
stay small, since a child's peak memory begins at its parent's, and a machine with a GPU need not have boto3.
"""

from __future__ import annotations

import os
from typing import Any


def client() -> Any:
    """A client of the S3 store that the environment names."""
    from cycleqd.storage.client import connect_client
    from cycleqd.storage.settings import Settings

    return connect_client(Settings.from_environment({"MLFLOW_TRACKING_URI": "none", **os.environ}))


def source(place: str) -> Any:
    """The source of a checkpoint: a folder, or s3://BUCKET/PREFIX."""
    from cycleqd.weights.local import LocalSource

    if not place.startswith("s3://"):
        return LocalSource(place)
    from cycleqd.storage.checkpoints import S3Source

    bucket, prefix = place.removeprefix("s3://").split("/", 1)
    return S3Source(client(), bucket, prefix)


def sink(place: str) -> Any:
    """Where a checkpoint goes: a folder, or s3://BUCKET/PREFIX."""
    from cycleqd.weights.local import LocalSink

    if not place.startswith("s3://"):
        return LocalSink(place)
    from cycleqd.storage.checkpoints import S3Sink

    bucket, prefix = place.removeprefix("s3://").split("/", 1)
    return S3Sink(client(), bucket, prefix)
