"""The store against a real S3 server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import IntegrityError, InvalidInputError, UnavailableError
from cycleqd.storage.client import connect_client, probe
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings


def test_reads_back_what_was_written(store: Store) -> None:
    store.put("a/b", b"bytes")
    store.put_json("a/c", {"b": 1, "a": [None, 0.1]})
    assert store.get("a/b") == b"bytes"
    assert store.get("a/c") == b'{"a":[null,0.1],"b":1,"format":4}'
    assert store.get_json("a/c") == {"b": 1, "a": [None, 0.1]}
    assert store.exists("a/b") and not store.exists("a")
    assert store.find("a") is None and store.find_json("a/d") is None


def test_names_what_is_missing_or_broken(store: Store) -> None:
    with pytest.raises(IntegrityError, match=f"s3://{store.bucket}/empty/nothing is missing"):
        store.get("nothing")
    store.put("half", b'{"a": ')
    with pytest.raises(IntegrityError, match="empty/half is not JSON"):
        store.get_json("half")


def test_lists_and_deletes_one_folder_only(store: Store) -> None:
    for key in ("a/1", "a/2/3", "ab", "b"):
        store.put(key, key.encode())
    assert store.list("a") == {"a/1": 3, "a/2/3": 5}
    store.delete_prefix("a")
    store.delete(["never-there"])
    assert store.list("") == {"ab": 2, "b": 1}


def test_only_one_creates_and_only_the_last_reader_replaces(store: Store) -> None:
    assert store.create("k", b"1")
    assert not store.create("k", b"2")
    first = store.find_with_etag("k")
    assert first is not None and first[0] == b"1"
    assert store.replace("k", b"3", first[1])
    assert not store.replace("k", b"4", first[1])
    assert store.get("k") == b"3"


def test_a_file_appears_only_when_its_digest_is_right(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 50_000)  # more than one part
    sha = store.put_file("file", source)
    assert sha == hashlib.sha256(source.read_bytes()).hexdigest()
    with pytest.raises(IntegrityError, match=f"recorded was {'0' * 64}"):
        store.get_file("file", target, "0" * 64, print)
    assert list(tmp_path.iterdir()) == [source]
    arrived: list[int] = []
    store.get_file("file", target, sha, arrived.append)
    assert sum(arrived) == source.stat().st_size
    assert target.read_bytes() == source.read_bytes()


def test_unfinished_uploads_are_found_and_given_up(store: Store) -> None:
    started = store.client.create_multipart_upload(Bucket=store.bucket, Key=store.key("models/x/part"))
    assert list(store.uploads()) == [("models/x/part", started["UploadId"])]
    store.abort_upload("models/x/part", started["UploadId"])
    store.abort_upload("models/x/part", started["UploadId"])
    assert list(store.uploads()) == []


def test_probe_accepts_a_store_with_conditional_writes(store: Store) -> None:
    probe(store)
    assert store.list("") == {}


@pytest.mark.parametrize(("header", "named"), [("If-Match", "a stale If-Match"), ("If-None-Match", "If-None-Match")])
def test_probe_refuses_a_store_that_ignores_conditions(store: Store, header: str, named: str) -> None:
    def ignore(request: Any, **_: Any) -> None:
        del request.headers[header]

    store.client.meta.events.register("before-sign.s3.PutObject", ignore)
    with pytest.raises(UnavailableError, match=f"127.0.0.1.* ignores {named}"):
        probe(store)
    assert store.list("") == {}


def test_an_unreachable_store_is_one_sentence(environment: dict[str, str]) -> None:
    settings = replace(Settings.from_environment(environment), endpoint="http://127.0.0.1:9")
    store = Store(connect_client(settings, attempts=1), settings.bucket, "x")
    with pytest.raises(UnavailableError, match=r"s3://.*/x/key cannot be read .*check AWS_ENDPOINT_URL"):
        store.find("key")


def test_settings_name_what_is_missing() -> None:
    with pytest.raises(InvalidInputError, match="lacks CYCLEQD_BUCKET and MLFLOW_TRACKING_URI"):
        Settings.from_environment({})
