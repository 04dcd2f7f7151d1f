"""The evolutions of a bucket, and taking one out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cycleqd.storage import layout
from cycleqd.storage.client import reported
from cycleqd.storage.objects import Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def evolutions(client: S3Client, bucket: str) -> list[Store]:
    """The evolutions of a bucket, by name; what else lies in it is left out.

    Args:
        client: Of the store.
        bucket: The bucket.
    """
    with reported(f"s3://{bucket}", "listed"):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/")
        names = [part["Prefix"].rstrip("/") for page in pages for part in page.get("CommonPrefixes", [])]
    return [store for name in sorted(names) if (store := Store(client, bucket, name)).exists(layout.CONFIG)]


def remove(store: Store) -> None:
    """Delete an evolution's objects and unfinished uploads. Killed, it is repeated: the configuration goes last.

    Args:
        store: The evolution.
    """
    for key, upload in list(store.uploads()):
        store.abort_upload(key, upload)
    store.delete(key for key in store.list("") if key != layout.CONFIG)
    store.delete([layout.CONFIG])
