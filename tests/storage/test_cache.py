"""The checkpoint cache: bounded, verified, shared by processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from cycleqd.errors import IntegrityError, InvalidInputError, UnavailableError
from cycleqd.storage.cache import CheckpointCache
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import Manifest
from tests.weights.models import manifest_of


def model(folder: Path, content: bytes) -> tuple[LocalSource, Manifest]:
    """A 'checkpoint' of one file; the cache looks at nothing but names and bytes."""
    folder.mkdir()
    (folder / "f").write_bytes(content)
    return LocalSource(folder), manifest_of(folder)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_a_checkpoint_is_fetched_once(tmp_path: Path) -> None:
    source, manifest = model(tmp_path / "m", b"abc" * 1000)
    cache = CheckpointCache(tmp_path / "cache", 10_000)
    with cache.fetch(source, manifest) as folder:
        assert manifest_of(folder) == manifest
    (tmp_path / "m/f").unlink()  # the second time nothing is read from the source
    with cache.fetch(source, manifest) as again:
        assert again == folder and (again / "f").read_bytes() == b"abc" * 1000


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache", 3_000)
    models = [model(tmp_path / n, n.encode() * 1000) for n in "abcd"]
    for age, (source, manifest) in zip((300, 200, 100), models, strict=False):
        with cache.fetch(source, manifest) as folder:
            pass
        os.utime(folder, (folder.stat().st_atime, folder.stat().st_mtime - age))
    with cache.fetch(*models[0]):  # now b is the oldest
        pass
    with cache.fetch(*models[3]):
        assert entries(tmp_path / "cache") == {models[i][1].digest for i in (0, 2, 3)}


def test_a_checkpoint_in_use_is_never_evicted(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache", 2_500)
    models = [model(tmp_path / n, n.encode() * 1000) for n in "abc"]
    with cache.fetch(*models[0]) as first, cache.fetch(*models[1]):
        with pytest.raises(UnavailableError, match="500 bytes left beside the checkpoints in use, 1,000 are needed"):
            cache.fetch(*models[2]).__enter__()
        assert (first / "f").read_bytes() == b"a" * 1000
    with cache.fetch(*models[2]):
        assert models[2][1].digest in entries(tmp_path / "cache")


def test_finding_fetches_nothing_and_keeps_what_it_found(tmp_path: Path) -> None:
    cache = CheckpointCache(tmp_path / "cache", 1_500)
    models = [model(tmp_path / n, n.encode() * 1000) for n in "ab"]
    with cache.find(models[0][1]) as absent:
        assert absent is None and not entries(tmp_path / "cache")
    with cache.fetch(*models[0]):
        pass
    with cache.find(models[0][1]) as found, pytest.raises(UnavailableError, match="left beside the checkpoints in use"):
        assert found == tmp_path / "cache" / models[0][1].digest
        cache.fetch(*models[1]).__enter__()


def test_too_large_and_damaged_checkpoints_leave_no_entry(tmp_path: Path) -> None:
    source, manifest = model(tmp_path / "m", b"x" * 1000)
    with pytest.raises(InvalidInputError, match="1,000 bytes does not fit"):
        CheckpointCache(tmp_path / "cache", 999).fetch(source, manifest).__enter__()
    (tmp_path / "m/f").write_bytes(b"y" * 1000)
    with pytest.raises(IntegrityError, match="m/f has sha256"):
        CheckpointCache(tmp_path / "cache", 1000).fetch(source, manifest).__enter__()
    assert not entries(tmp_path / "cache")


def test_what_a_killed_fetch_left_is_removed(tmp_path: Path) -> None:
    source, manifest = model(tmp_path / "m", b"x" * 1000)
    stale = tmp_path / "cache" / f"{'0' * 64}.900.part"
    stale.mkdir(parents=True)
    (stale / ".f.part").write_bytes(b"x" * 10)
    with CheckpointCache(tmp_path / "cache", 1_500).fetch(source, manifest):
        assert entries(tmp_path / "cache") == {manifest.digest}


@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_a_damaged_entry_is_fetched_again(tmp_path: Path, harm: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/generation_config.json").write_text("{}")
    (tmp_path / "m/f").write_bytes(b"x" * 1000)
    source, manifest = LocalSource(tmp_path / "m"), manifest_of(tmp_path / "m")
    cache = CheckpointCache(tmp_path / "cache", 1_500)
    with cache.fetch(source, manifest) as entry:
        pass
    if harm == "missing":
        (entry / "generation_config.json").unlink()
    else:
        os.truncate(entry / "generation_config.json", 1)
    with cache.find(manifest) as found:
        assert found is None
    with cache.fetch(source, manifest) as entry:
        assert manifest_of(entry) == manifest and entries(tmp_path / "cache") == {manifest.digest}


def test_what_is_made_is_an_entry_like_those_that_are_fetched(tmp_path: Path) -> None:
    cache, digest, calls = CheckpointCache(tmp_path / "cache", 1_500), "5" * 64, list[Path]()

    def write(part: Path) -> None:
        calls.append(part)
        (part / "f").write_bytes(b"x" * 1000)
        if len(calls) == 1:
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        cache.made(digest, 1000, write).__enter__()
    assert not entries(tmp_path / "cache")
    source, manifest = model(tmp_path / "m", b"y" * 1000)
    with cache.made(digest, 1000, write) as folder:
        assert folder == tmp_path / "cache" / digest and (folder / "f").read_bytes() == b"x" * 1000
        with pytest.raises(UnavailableError, match="left beside the checkpoints in use"):
            cache.fetch(source, manifest).__enter__()
    with cache.made(digest, 1000, write):
        assert len(calls) == 2  # it was there
    with cache.fetch(source, manifest):
        assert entries(tmp_path / "cache") == {manifest.digest}  # it made room


EVICT = """
import os, signal, sys
from cycleqd.storage.cache import CheckpointCache
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import Manifest
folder, cache, manifest = sys.argv[1:]
unlink = os.unlink
def last(*args, **more):
    unlink(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
os.unlink = last
CheckpointCache(cache, 2_500).fetch(LocalSource(folder), Manifest.from_json(manifest)).__enter__()
"""


def test_a_killed_eviction_leaves_no_entry(tmp_path: Path) -> None:
    source, _ = model(tmp_path / "m", b"x" * 1000)
    (tmp_path / "m/g").write_bytes(b"y" * 1000)
    manifest = manifest_of(tmp_path / "m")
    cache = CheckpointCache(tmp_path / "cache", 2_500)
    with cache.fetch(source, manifest):
        pass
    _, other = model(tmp_path / "other", b"z" * 1000)
    command = [sys.executable, "-c", EVICT, str(tmp_path / "other"), str(tmp_path / "cache"), other.to_json()]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    assert entries(tmp_path / "cache") == {f"{manifest.digest}.2000.part"}
    with cache.fetch(source, manifest) as entry:
        assert manifest_of(entry) == manifest and entries(tmp_path / "cache") == {manifest.digest}


class Counted(LocalSource):
    """While it is read, another process begins to make room: it holds the accounting's lock from then on."""

    def __init__(self, folder: Path, lock: int) -> None:
        super().__init__(folder)
        self.lock, self.read = lock, threading.Event()

    def read_range(self, name: str, start: int, stop: int) -> memoryview:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.read.set()
        return super().read_range(name, start, stop)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_fetch_ends_only_while_nobody_counts(tmp_path: Path, ends: str) -> None:
    _, manifest = model(tmp_path / "m", b"x" * 1000)
    if ends == "badly":
        (tmp_path / "m/f").write_bytes(b"y" * 1000)
    cache = CheckpointCache(tmp_path / "cache", 1_500)
    lock = os.open(tmp_path / "cache/.lock", os.O_RDWR | os.O_CREAT)
    source = Counted(tmp_path / "m", lock)

    def fetch() -> None:
        with suppress(IntegrityError), cache.fetch(source, manifest):
            pass

    fetching = threading.Thread(target=fetch)
    fetching.start()
    assert source.read.wait(60)
    fetching.join(0.3)  # it would have ended long before
    assert entries(tmp_path / "cache") == {f"{manifest.digest}.1000.part"}, "what is counted must not vanish"
    os.close(lock)
    fetching.join(60)
    assert entries(tmp_path / "cache") == ({manifest.digest} if ends == "well" else set())


FETCH = """
import sys, time
from cycleqd.storage.cache import CheckpointCache
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import Manifest
folder, cache, limit, manifest = sys.argv[1:]
with CheckpointCache(cache, int(limit)).fetch(LocalSource(folder), Manifest.from_json(manifest)) as entry:
    inode = entry.stat().st_ino
    time.sleep(0.3)
    print(inode, len((entry / "f").read_bytes()))
"""


def test_processes_share_one_fetch(tmp_path: Path) -> None:
    _, manifest = model(tmp_path / "m", os.urandom(30 << 20))
    command = [sys.executable, "-c", FETCH, str(tmp_path / "m"), str(tmp_path / "cache"), str(32 << 20)]
    processes = [subprocess.Popen([*command, manifest.to_json()], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(answers) == 1 and answers.pop().split()[1] == str(30 << 20)
    assert entries(tmp_path / "cache") == {manifest.digest}


SHARE = """
import fcntl, os, signal, struct, sys
from cycleqd.storage.cache import CheckpointCache
from cycleqd.weights.local import LocalSource
from cycleqd.weights.manifest import Manifest

def as_on_nfs(descriptor, wanted):
    kinds = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
    kind = kinds[wanted & ~fcntl.LOCK_NB]
    how = fcntl.F_OFD_SETLK if wanted & fcntl.LOCK_NB else fcntl.F_OFD_SETLKW
    fcntl.fcntl(descriptor, how, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))

class Told(LocalSource):
    def read_range(self, name, start, stop):
        say("reads")
        return super().read_range(name, start, stop)

def say(word):
    print(word, flush=True)
    sys.stdin.readline()

where, folder, cache, limit, manifest = sys.argv[1:]
if where == "nfs":
    fcntl.flock = as_on_nfs
kept = CheckpointCache(cache, int(limit))
say("starts")
with kept.fetch(Told(folder), Manifest.from_json(manifest)) as entry:
    say(len((entry / "f").read_bytes()))
"""


class Pod:
    """A process with a checkpoint to fetch into a shared folder; it says what it does, and waits to go on."""

    def __init__(self, where: str, source: Path, cache: Path, limit: int, manifest: Manifest) -> None:
        command = [sys.executable, "-c", SHARE, where, str(source), str(cache), str(limit), manifest.to_json()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def goes_on(self, times: int = 1) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n" * times)
        self.process.stdin.flush()

    def ends(self) -> list[str]:
        """What it says to its end."""
        return self.process.communicate(timeout=120)[0].split()


@pytest.mark.parametrize("where", ["disk", "nfs"])
def test_pods_that_fill_one_folder_at_once_are_safe_though_one_is_killed_in_the_middle(
    tmp_path: Path, where: str
) -> None:
    """On NFS flock is made of record locks, whose shared holders wait for each other to upgrade: for ever."""
    _, manifest = model(tmp_path / "m", os.urandom(20 << 20))
    pods = [Pod(where, tmp_path / "m", tmp_path / "cache", 21 << 20, manifest) for _ in range(3)]
    assert [pod.says() for pod in pods] == ["starts"] * 3
    pods[0].goes_on()
    assert pods[0].says() == "reads"
    for pod in pods[1:]:
        pod.goes_on()  # both wait
    pods[0].process.kill()
    assert pods[0].process.wait(60) == -signal.SIGKILL
    for pod in pods[1:]:
        pod.goes_on(9)
    ends = [pod.ends() for pod in pods[1:]]
    assert [pod.process.returncode for pod in pods[1:]] == [0, 0]
    assert sorted(end.count("reads") for end in ends) == [0, 2], "one fetched, anew"
    assert {end[-1] for end in ends} == {str(20 << 20)}
    assert entries(tmp_path / "cache") == {manifest.digest}


@pytest.mark.parametrize("where", ["disk", "nfs"])
def test_pods_with_different_checkpoints_keep_the_folder_below_its_size(tmp_path: Path, where: str) -> None:
    """While two are in use there is no room for a third; then what was used least recently goes."""
    given = [model(tmp_path / name, name.encode() * 1000)[1] for name in "abc"]
    first, second, third = (
        Pod(where, tmp_path / name, tmp_path / "cache", 2_500, manifest)
        for name, manifest in zip("abc", given, strict=True)
    )
    for pod in (first, second):
        for word in ("starts", "reads", "1000"):
            assert pod.says() == word
            if word != "1000":
                pod.goes_on()
    third.goes_on(9)
    third.ends()
    assert third.process.returncode == 1 and entries(tmp_path / "cache") == {m.digest for m in given[:2]}
    for pod in (first, second):
        pod.goes_on()
        pod.ends()
    again = Pod(where, tmp_path / "c", tmp_path / "cache", 2_500, given[2])
    again.goes_on(9)
    assert again.ends() == ["starts", "reads", "1000"]
    assert entries(tmp_path / "cache") == {m.digest for m in given[1:]}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=r"file/cache cannot be written \(Not a directory\) by user"):
        CheckpointCache(tmp_path / "file" / "cache", 1)
