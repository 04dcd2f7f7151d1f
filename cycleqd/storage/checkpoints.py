"""Checkpoints in S3: ranged reads straight into memory, multipart uploads while the tensors are produced."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from cycleqd.errors import IntegrityError
from cycleqd.storage.bodies import Body
from cycleqd.storage.client import SHORTER, reported
from cycleqd.weights.buffers import buffer
from cycleqd.weights.layout import leftovers
from cycleqd.weights.protocols import Buffer, Sink, Source, Writer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_PART = 16 << 20
_MOST_PARTS = 10_000  # S3's limit
_UPLOADS = 4  # parts in flight, over all files of a sink


class S3Source(Source):
    """A checkpoint under s3://bucket/prefix/. Thread-safe, as boto3 clients are."""

    def __init__(self, client: S3Client, bucket: str, prefix: str, digests: Mapping[str, str] | None = None) -> None:
        """`digests`: recorded sha256 of the files; what is read is verified against them."""
        self._client, self._bucket, self._prefix = client, bucket, prefix.strip("/")
        self._digests = dict(digests or {})

    @property
    def location(self) -> str:
        """The s3:// URL."""
        return f"s3://{self._bucket}/{self._prefix}"

    def files(self) -> Mapping[str, int]:
        """Names and sizes of the objects directly under the prefix."""
        found: dict[str, int] = {}
        start = f"{self._prefix}/"
        with reported(self.location, "listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=start, Delimiter="/"
            )
            for item in (item for page in pages for item in page.get("Contents", [])):
                if item["Key"] != start:  # some stores list a marker of the folder itself
                    found[item["Key"][len(start) :]] = item["Size"]
        return found

    def digests(self) -> Mapping[str, str]:
        """The digests given at construction."""
        return self._digests

    def read_range(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop)."""
        view, done = buffer(stop - start), 0
        if not view:
            return view
        with reported(f"{self.location}/{name}", "read"):
            for piece in Body(self._client, self._bucket, f"{self._prefix}/{name}", start, stop):
                view[done : done + len(piece)] = piece
                done += len(piece)
        if done < len(view):
            raise IntegrityError(SHORTER.format(f"{self.location}/{name}"))
        return view


class S3Sink(Sink):
    """A checkpoint being written under s3://bucket/prefix/. Objects appear only when their writer is closed.

    Several processes may write the same checkpoint at once, and none disturbs another: they write the same bytes, and
    none removes what it has closed or what is still being uploaded. The record, written last, decides; what killed
    runs leave is removed when nobody can be at work on it (see cleaning and aggregate).
    """

    def __init__(self, client: S3Client, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix.strip("/")
        self._pool = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload")

    @property
    def location(self) -> str:
        """The s3:// URL."""
        return f"s3://{self._bucket}/{self._prefix}"

    def create(self, name: str, size: int) -> S3Writer:
        """Start an object; its multipart upload begins with the first full part."""
        return S3Writer(self._client, self._bucket, f"{self._prefix}/{name}", size, self._pool)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the shards and the index of other names that a run killed while closing its files left."""
        present = S3Source(self._client, self._bucket, self._prefix).files()
        for name in leftovers(present, names):
            with reported(f"{self.location}/{name}", "removed"):
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")


class S3Writer(Writer):
    """One object: full parts are uploaded by the sink's pool while later ones are filled."""

    def __init__(self, client: S3Client, bucket: str, key: str, size: int, pool: ThreadPoolExecutor) -> None:
        self._client, self._bucket, self._key, self._pool = client, bucket, key, pool
        self._part_size = max(_PART, -(-size // _MOST_PARTS))
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._upload: str | None = None
        self._running: deque[Future[CompletedPartTypeDef]] = deque()
        self._parts: list[CompletedPartTypeDef] = []

    @property
    def _url(self) -> str:
        return f"s3://{self._bucket}/{self._key}"

    def write(self, data: Buffer) -> None:
        """Append and hash; waits when too many parts are under way."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        while len(view):
            room = self._part_size - len(self._buffer)
            self._buffer += view[:room]
            view = view[room:]
            if len(self._buffer) == self._part_size:
                self._send()

    def close(self) -> str:
        """Complete the object; the sha256 of what was written."""
        with reported(self._url, "written"):
            if self._upload is None:
                self._client.put_object(Bucket=self._bucket, Key=self._key, Body=bytes(self._buffer))
            else:
                if self._buffer:
                    self._send()
                while self._running:
                    self._parts.append(self._running.popleft().result())
                self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=self._key, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
                )
                self._upload = None
        return self._hash.hexdigest()

    def abort(self) -> None:
        """Abort the upload, which may be gone. A closed object stays: another process may have recorded it already."""
        for future in self._running:
            future.cancel()
        for future in self._running:
            if not future.cancelled():
                future.exception()
        self._running.clear()
        if self._upload is not None:
            with (
                reported(self._url, "freed of an unfinished upload"),
                suppress(self._client.exceptions.NoSuchUpload),
            ):
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._upload)
        self._upload = None

    def _send(self) -> None:
        if self._upload is None:
            with reported(self._url, "written"):
                answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key)
            self._upload = answer["UploadId"]
        number = len(self._parts) + len(self._running) + 1
        body, self._buffer = self._buffer, bytearray()
        self._running.append(self._pool.submit(self._put_part, self._upload, number, body))
        while len(self._running) > _UPLOADS:
            self._parts.append(self._running.popleft().result())

    def _put_part(self, upload: str, number: int, body: bytearray) -> CompletedPartTypeDef:
        with reported(self._url, "written"):
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=upload,
                PartNumber=number,
                Body=body,  # type: ignore[arg-type]  # botocore takes bytearrays
            )
        return {"PartNumber": number, "ETag": answer["ETag"]}
