"""Reading objects: a transfer that is cut is continued where it stopped.

botocore repeats requests, but the body of an answer is read after it has returned; that part is done here, once, for
everything that reads objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cycleqd.errors import UnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_STEP = 1 << 20
_CUTS = 4
_STRETCH = 64 << 20


class Body:
    """The bytes [start, stop) of an object, or all of them, of the version that it has when this is made.

    Raises botocore's errors, ClientError for an object or a range that does not exist.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, start: int = 0, stop: int | None = None) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        which = {} if stop is None else {"Range": f"bytes={start}-{stop - 1}"}
        answer = client.get_object(Bucket=bucket, Key=key, **which)  # type: ignore[arg-type]
        self.etag = answer["ETag"]
        self._start, self.size, self._stream = start, answer["ContentLength"], answer["Body"]

    def __iter__(self) -> Iterator[bytes]:
        """The bytes in pieces, once. Four cuts are mended, and one more for every 64 MiB; the next one is raised.

        Raises UnavailableError when the object is replaced between a cut and its mending.
        """
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        done = cuts = 0
        while True:
            try:
                while piece := self._stream.read(_STEP):
                    done += len(piece)
                    yield piece
                return
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                cuts += 1
                if cuts > _CUTS + done // _STRETCH:
                    raise
            finally:
                self._stream.close()
            if done == self.size:
                return
            self._continue(done)

    def _continue(self, done: int) -> None:
        """Ask for what is missing, of the same version."""
        rest = f"bytes={self._start + done}-{self._start + self.size - 1}"
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key, Range=rest, IfMatch=self.etag)
        except self._client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                raise UnavailableError(
                    f"s3://{self._bucket}/{self._key} was replaced while it was read; do this again"
                ) from error
            raise
        self._stream = answer["Body"]
