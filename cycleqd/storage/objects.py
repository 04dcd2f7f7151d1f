"""The objects of one evolution in S3: whole reads and writes, conditional writes, listing, deleting.

botocore's own bounded retries (5 attempts, exponential back-off) are the only ones, but for bodies that break off while
they are read: see bodies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cycleqd.errors import IntegrityError, UnavailableError
from cycleqd.outside import DATA_BYTES
from cycleqd.search.records import JSON
from cycleqd.storage.bodies import Body
from cycleqd.storage.client import code, connect_client, reported
from cycleqd.storage.formats import decode, encode
from cycleqd.storage.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_MISSING = {"NoSuchKey", "404", "NotFound"}
_LOST_RACE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_SHA256 = "sha256"  # the name of an object's metadata


class Store:
    """The objects under s3://bucket/evolution/. Thread-safe. Keys are relative to the evolution (see layout).

    Every failure of the service is an UnavailableError that names the object.
    """

    def __init__(self, client: S3Client, bucket: str, evolution: str) -> None:
        self.client = client
        self.bucket = bucket
        self.evolution = evolution

    @classmethod
    def connect(cls, settings: Settings, evolution: str) -> Store:
        """The evolution's objects, with a client of their own.

        Args:
            settings: Bucket, endpoint and region.
            evolution: Name of the evolution, which is its prefix in the bucket.
        """
        return cls(connect_client(settings), settings.bucket, evolution)

    def key(self, key: str) -> str:
        """The key in the bucket.

        Args:
            key: Key relative to the evolution.
        """
        return f"{self.evolution}/{key}"

    def url(self, key: str) -> str:
        """The s3:// URL, as messages and MLflow show it.

        Args:
            key: Key relative to the evolution; "" for the evolution itself.
        """
        return f"s3://{self.bucket}/{self.evolution}/{key}"

    def find(self, key: str) -> bytes | None:
        """The object's bytes, None when there is none.

        Args:
            key: Key relative to the evolution.
        """
        found = self.find_with_etag(key)
        return None if found is None else found[0]

    def find_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and ETag (for `replace`), None when there is none.

        Args:
            key: Key relative to the evolution.
        """

        def read() -> tuple[bytes, str]:
            body = self._body(key)
            if body.size > DATA_BYTES:
                raise IntegrityError(
                    f"{self.url(key)} has {body.size:,} bytes, and what is read whole at most {DATA_BYTES:,}; it was"
                    " replaced: restore it"
                )
            return b"".join(body), body.etag

        return self._if_present(key, read)

    def get(self, key: str) -> bytes:
        """The bytes of an object that must exist.

        Args:
            key: Key relative to the evolution.

        Raises:
            IntegrityError: there is no such object.
        """
        found = self.find(key)
        if found is None:
            raise IntegrityError(
                f"{self.url(key)} is missing; it was deleted, or its stage has not finished: run that again"
            )
        return found

    def get_json(self, key: str) -> JSON:
        """The value of a JSON object that must exist, in the present format.

        Args:
            key: Key relative to the evolution.

        Raises:
            IntegrityError: there is no such object, or it is not a JSON object.
            InvalidInputError: it is of a format that this version does not read.
        """
        return decode(key, self.get(key), self.url(key))

    def find_json(self, key: str) -> JSON | None:
        """The value of a JSON object in the present format, None when there is none. Raises as `get_json` does.

        Args:
            key: Key relative to the evolution.
        """
        found = self.find(key)
        return None if found is None else decode(key, found, self.url(key))

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key.

        Args:
            key: Key relative to the evolution.
        """
        return self.carried(key) is not None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, and overwrite what was there.

        Args:
            key: Key relative to the evolution.
            data: The object's bytes.
        """
        with self._reported(key, "written"):
            self.client.put_object(Bucket=self.bucket, Key=self.key(key), Body=data)

    def put_json(self, key: str, value: JSON) -> None:
        """Write a JSON object in the present format: equal values, equal bytes.

        Args:
            key: Key relative to the evolution.
            value: A dict of JSON values.
        """
        self.put(key, encode(value))

    def create(self, key: str, data: bytes) -> bool:
        """Write unless the object exists (If-None-Match: *). False: it exists, whatever its bytes.

        Args:
            key: Key relative to the evolution.
            data: The object's bytes.
        """
        return self._put_if(key, data, {"IfNoneMatch": "*"})

    def replace(self, key: str, data: bytes, etag: str) -> bool:
        """Write if the object has not changed (If-Match). False: it was changed or removed meanwhile.

        Args:
            key: Key relative to the evolution.
            data: The object's new bytes.
            etag: ETag that the object had when it was read.
        """
        return self._put_if(key, data, {"IfMatch": etag})

    def list(self, prefix: str) -> dict[str, int]:
        """Relative key → size in bytes of every object below a folder.

        Args:
            prefix: Key of the folder, relative to the evolution, without a trailing slash; "" for the whole evolution.
        """
        start = self.key(f"{prefix}/" if prefix else "")
        found: dict[str, int] = {}
        with self._reported(prefix, "listed"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
                for item in page.get("Contents", []):
                    found[item["Key"][len(self.evolution) + 1 :]] = item["Size"]
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are no error.

        Args:
            keys: Keys relative to the evolution.
        """
        names = sorted(keys)
        for start in range(0, len(names), 1000):
            part = names[start : start + 1000]
            with self._reported(part[0], "deleted"):
                answer = self.client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": self.key(k)} for k in part], "Quiet": True}
                )
            for failure in answer.get("Errors", []):
                raise UnavailableError(
                    f"s3://{self.bucket}/{failure.get('Key')} cannot be deleted ({failure.get('Message')});"
                    " allow s3:DeleteObject on the bucket"
                )

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below a folder.

        Args:
            prefix: Key of the folder, relative to the evolution, without a trailing slash.
        """
        self.delete(self.list(prefix))

    def put_file(self, key: str, path: Path, progress: Callable[[int], None] | None = None) -> str:
        """Upload a file of any size, in parts when it is large; its sha256 (hex), which is also stored with the object.

        Args:
            key: Key relative to the evolution.
            path: The file on this machine.
            progress: Called with the number of bytes of every part, from several threads.
        """
        sha = file_sha256(path)
        with self._reported(key, "written"):
            options = {"Metadata": {_SHA256: sha}}
            self.client.upload_file(str(path), self.bucket, self.key(key), ExtraArgs=options, Callback=progress)
        return sha

    def carried(self, key: str) -> tuple[int, str] | None:
        """Size and sha256 of an object that `put_file` wrote; None when there is none.

        Args:
            key: Key relative to the evolution.
        """

        def read() -> tuple[int, str]:
            found = self.client.head_object(Bucket=self.bucket, Key=self.key(key))
            return found["ContentLength"], found["Metadata"].get(_SHA256, "")

        return self._if_present(key, read)

    def sha256(self, key: str) -> str | None:
        """The sha256 (hex) of the object's bytes as they are now, streamed; None when there is none.

        Args:
            key: Key relative to the evolution.
        """

        def read() -> str:
            found = hashlib.sha256()
            for piece in self._body(key):
                found.update(piece)
            return found.hexdigest()

        return self._if_present(key, read)

    def get_file(self, key: str, path: Path, sha256: str, progress: Callable[[int], None]) -> None:
        """Download an object to a file, which appears only when it is whole.

        Args:
            key: Key relative to the evolution.
            path: Where to write it; missing folders are made.
            sha256: Digest (hex) that the object must have.
            progress: Called with the number of bytes of every piece.

        Raises:
            IntegrityError: its sha256 differs.
        """
        part = path.with_name(path.name + ".part")
        found = hashlib.sha256()
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._reported(key, "read"), part.open("wb") as file:
                for piece in self._body(key):
                    found.update(piece)
                    file.write(piece)
                    progress(len(piece))
            if found.hexdigest() != sha256:
                raise IntegrityError(
                    f"{self.url(key)} has sha256 {found.hexdigest()}, recorded was {sha256}; restore the object"
                )
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def uploads(self) -> Iterator[tuple[str, str]]:
        """(key, upload id) of every unfinished multipart upload of this evolution."""
        with self._reported("", "listed"):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.key("")):
                for item in page.get("Uploads", []):
                    yield item["Key"][len(self.evolution) + 1 :], item["UploadId"]

    def abort_upload(self, key: str, upload: str) -> None:
        """Abort a multipart upload; one that is already gone is no error.

        Args:
            key: Key relative to the evolution.
            upload: S3's id of the upload.
        """
        with self._reported(key, "freed of an unfinished upload"):
            try:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=self.key(key), UploadId=upload)
            except self.client.exceptions.ClientError as error:
                if code(error) not in _MISSING | {"NoSuchUpload"}:
                    raise

    def _put_if(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        """A conditional PUT; False when the condition did not hold."""
        with self._reported(key, "written"):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.key(key), Body=data, **condition)  # type: ignore[arg-type]
                return True
            except self.client.exceptions.ClientError as error:
                if code(error) in _LOST_RACE:
                    return False
                raise

    def _if_present(self, key: str, read: Callable[[], T]) -> T | None:
        """What `read` finds of an object, None when there is none."""
        with self._reported(key, "read"):
            try:
                return read()
            except self.client.exceptions.ClientError as error:
                if code(error) in _MISSING:
                    return None
                raise

    def _body(self, key: str) -> Body:
        return Body(self.client, self.bucket, self.key(key))

    def _reported(self, key: str, what: str) -> AbstractContextManager[None]:
        return reported(self.url(key), what)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces.

    Args:
        path: The file on this machine.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
