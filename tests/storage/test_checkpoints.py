"""Checkpoints from and to a real S3 server: the same bytes as with local files, cut transfers, nothing left behind."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError
from urllib3 import HTTPResponse

from cycleqd.errors import IntegrityError, InvalidInputError, UnavailableError
from cycleqd.storage.bodies import Body
from cycleqd.storage.checkpoints import S3Sink, S3Source
from cycleqd.storage.client import connect_client
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.weights.checkpoint import open_checkpoint
from cycleqd.weights.local import LocalSink
from cycleqd.weights.merge import merge
from tests.weights.models import drawn, manifest_of, mean, opened, tensors, write_model

PART = 16 << 20


def uploaded(store: Store, folder: Path, prefix: str) -> S3Source:
    """A local folder put under a prefix; the source knows the folder's digests."""
    for path in folder.iterdir():
        store.client.put_object(Bucket=store.bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return S3Source(store.client, store.bucket, prefix, manifest_of(folder).digests())


def contents(store: Store, prefix: str) -> dict[str, bytes]:
    source = S3Source(store.client, store.bucket, prefix)
    return {name: bytes(source.read_range(name, 0, size)) for name, size in source.files().items()}


def unfinished(store: Store) -> list[Any]:
    return store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])


def test_merging_from_and_to_s3_gives_the_bytes_of_local_files(store: Store, tmp_path: Path) -> None:
    for seed in range(3):
        write_model(tmp_path / str(seed), tensors(seed), shards=1 + seed % 2)
    options: dict[str, Any] = {"mutation": drawn(seed=4), "shard_size": 4000}
    local = merge(
        opened(tmp_path / "0"),
        [opened(tmp_path / n) for n in "12"],
        mean(1.0, 0.5),
        LocalSink(tmp_path / "out"),
        **options,
    )
    base, *parents = (open_checkpoint(uploaded(store, tmp_path / n, f"models/{n}")) for n in "012")
    for left in ("model-00001-of-00099.safetensors", "model.safetensors"):  # by a run with another shard size
        store.client.put_object(Bucket=store.bucket, Key=f"models/child/{left}", Body=b"old")
    remote = merge(base, parents, mean(1.0, 0.5), S3Sink(store.client, store.bucket, "models/child"), **options)
    assert remote == local
    assert contents(store, "models/child") == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_a_large_file_goes_up_in_parts_and_any_range_comes_back(store: Store) -> None:
    data = os.urandom(2 * PART + 12_345)
    writer = S3Sink(store.client, store.bucket, "big").create("f", len(data))
    for start in range(0, len(data), 5_000_000):
        writer.write(memoryview(data)[start : start + 5_000_000])
    source = S3Source(store.client, store.bucket, "big")
    assert not source.files() and unfinished(store)
    assert writer.close() == hashlib.sha256(data).hexdigest()
    assert source.files() == {"f": len(data)} and not unfinished(store)
    for start, stop in ((0, 10), (PART - 3, PART + 3), (len(data) - 5, len(data)), (7, 7)):
        assert bytes(source.read_range("f", start, stop)) == data[start:stop]


def test_aborting_gives_the_upload_up_and_leaves_what_is_whole(store: Store) -> None:
    sink = S3Sink(store.client, store.bucket, "x")
    started, finished, large = sink.create("started", 2 * PART), sink.create("finished", 3), sink.create("large", PART)
    started.write(bytes(PART + 1))
    finished.write(b"abc")
    large.write(bytes(PART))
    for whole in (finished, large):
        whole.close()
    for writer in (started, finished, large, started):
        writer.abort()
    assert not unfinished(store) and contents(store, "x") == {"finished": b"abc", "large": bytes(PART)}


def test_writers_of_the_same_checkpoint_do_not_end_each_other(store: Store) -> None:
    data = os.urandom(PART + 5)
    first, second = (S3Sink(store.client, store.bucket, "x").create("f", len(data)) for _ in range(2))
    first.write(data)
    third = S3Sink(store.client, store.bucket, "x").create("f", len(data))
    second.write(data)
    assert first.close() == hashlib.sha256(data).hexdigest()
    third.write(data)
    third.abort()
    assert second.close() == hashlib.sha256(data).hexdigest()
    assert contents(store, "x") == {"f": data} and not unfinished(store)


def test_an_upload_that_was_given_up_for_a_writer_is_no_error_when_it_aborts(store: Store) -> None:
    client = connect_client(Settings.from_environment())
    writer = S3Sink(client, store.bucket, "x").create("f", 2 * PART)
    writer.write(bytes(PART))
    for upload in unfinished(store):
        store.client.abort_multipart_upload(Bucket=store.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    answer = b"<Error><Code>NoSuchUpload</Code></Error>"  # AWS says so, SeaweedFS does not
    client.meta.events.register(
        "before-send.s3.AbortMultipartUpload",
        lambda request, **_: AWSResponse(request.url, 404, {}, HTTPResponse(io.BytesIO(answer), preload_content=False)),
    )
    with pytest.raises(UnavailableError, match="x/f cannot be written"):
        writer.write(bytes(PART))
        writer.close()
    writer.abort()
    assert not contents(store, "x") and not unfinished(store)


def test_a_late_twin_that_fails_leaves_the_files_of_the_one_that_was_done(store: Store, tmp_path: Path) -> None:
    base, parent = (
        open_checkpoint(uploaded(store, write_model(tmp_path / name, tensors(seed)), name))
        for seed, name in enumerate(("base", "parent"))
    )
    merge(base, [parent], mean(1.0), S3Sink(store.client, store.bucket, "child"))
    made = contents(store, "child")
    client, puts = connect_client(Settings.from_environment()), []

    def fail_the_second(**_: Any) -> None:
        puts.append(1)
        if len(puts) == 2:
            raise EndpointConnectionError(endpoint_url=client.meta.endpoint_url)

    client.meta.events.register("before-call.s3.PutObject", fail_the_second)
    with pytest.raises(UnavailableError, match=r"child/.* cannot be written"):
        merge(base, [parent], mean(1.0), S3Sink(client, store.bucket, "child"))
    assert len(puts) == 2 and len(made) > 2 and contents(store, "child") == made


@pytest.mark.parametrize("harm", ["changed byte", "NaN"])
def test_a_bad_parent_aborts_the_upload_and_is_named(store: Store, tmp_path: Path, harm: str) -> None:
    base = open_checkpoint(uploaded(store, write_model(tmp_path / "base", tensors(0)), "base"))
    weights = tensors(1)
    if harm == "NaN":
        weights["model.norm.weight"][2] = float("nan")
    folder = write_model(tmp_path / "parent", weights)
    source = uploaded(store, folder, "parent")
    if harm == "changed byte":
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        store.client.put_object(Bucket=store.bucket, Key="parent/model.safetensors", Body=bytes(data))
    error = IntegrityError if harm == "changed byte" else InvalidInputError
    with pytest.raises(error, match=r"parent/model\.safetensors"):
        merge(base, [open_checkpoint(source)], mean(1.0), S3Sink(store.client, store.bucket, "out"))
    assert not contents(store, "out") and not unfinished(store)


class Cutter(threading.Thread):
    """A TCP proxy that cuts the first `cuts` answers after `after` bytes: a network that breaks."""

    def __init__(self, target: tuple[str, int], cuts: int, after: int) -> None:
        super().__init__(daemon=True)
        self.target, self.cuts, self.after = target, cuts, after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            threading.Thread(target=self.pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, True), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket, cut: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if cut and self.cuts and passed > self.after:
                    self.cuts -= 1
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(environment: dict[str, str], cuts: int, after: int) -> Iterator[Any]:
    """A client whose answers are cut."""
    port = int(environment["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])
    proxy = Cutter(("127.0.0.1", port), cuts, after)
    proxy.start()
    yield connect_client(Settings.from_environment({**environment, "AWS_ENDPOINT_URL": proxy.url}))
    proxy.listener.close()


Read = Callable[[Store, str, Path], bytes]


def _range(store: Store, key: str, path: Path) -> bytes:
    return bytes(S3Source(store.client, store.bucket, store.evolution).read_range(key, 0, SIZE))


def _record(store: Store, key: str, path: Path) -> bytes:
    return store.get(key)


def _file(store: Store, key: str, path: Path) -> bytes:
    arrived: list[int] = []
    store.get_file(key, path, hashlib.sha256(DATA).hexdigest(), arrived.append)
    assert sum(arrived) == SIZE
    return path.read_bytes()


def _hashed(store: Store, key: str, path: Path) -> bytes:
    assert store.sha256(key) == hashlib.sha256(DATA).hexdigest()
    return DATA


SIZE = 6 << 20
DATA = random.Random(0).randbytes(SIZE)


@pytest.mark.parametrize("read", [_range, _record, _file, _hashed])
def test_a_download_cut_on_the_way_goes_on_where_it_broke(
    read: Read, store: Store, environment: dict[str, str], tmp_path: Path
) -> None:
    store.put("f", DATA)
    with cutting(environment, cuts=3, after=1_500_000) as client:
        assert read(Store(client, store.bucket, store.evolution), "f", tmp_path / "f") == DATA
    (tmp_path / "f").unlink(missing_ok=True)
    with (
        cutting(environment, cuts=1000, after=300_000) as client,
        pytest.raises(UnavailableError, match="empty/f cannot be read"),
    ):
        read(Store(client, store.bucket, store.evolution), "f", tmp_path / "f")
    assert not list(tmp_path.glob("f*"))


def test_an_object_replaced_while_it_is_read_is_never_mixed(store: Store, environment: dict[str, str]) -> None:
    store.put("f", DATA)
    with cutting(environment, cuts=1, after=1_500_000) as client:
        pieces = iter(Body(client, store.bucket, store.key("f")))
        next(pieces)
        store.put("f", DATA[::-1])
        with pytest.raises(UnavailableError, match="empty/f was replaced while it was read"):
            list(pieces)


def test_a_range_that_is_cut_goes_on_within_the_range(store: Store, environment: dict[str, str]) -> None:
    store.put("f", DATA)
    with cutting(environment, cuts=2, after=1_500_000) as client:
        assert b"".join(Body(client, store.bucket, store.key("f"), 7, SIZE - 9)) == DATA[7:-9]
    store.put("none", b"")
    assert b"".join(Body(store.client, store.bucket, store.key("none"))) == b""


def test_an_object_shorter_than_it_was_listed_is_reported(store: Store) -> None:
    store.client.put_object(Bucket=store.bucket, Key="m/f", Body=b"12345")
    with pytest.raises(IntegrityError, match="m/f is shorter than was listed"):
        S3Source(store.client, store.bucket, "m").read_range("f", 0, 9)
    with pytest.raises(UnavailableError, match="m/gone cannot be read"):
        S3Source(store.client, store.bucket, "m").read_range("gone", 0, 9)
