"""Finding the root tar, and unpacking it with the user ids that the machines will have."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from cycleqd.errors import InvalidInputError, UnavailableError
from cycleqd.evaluation.sandbox import Keeper, id_range

_CACHE = Path.home() / ".cache/cycleqd"


def default_tar() -> Path:
    """$CYCLEQD_OS_ROOT, else ~/.cache/cycleqd/os-root.tar."""
    return Path(os.environ.get("CYCLEQD_OS_ROOT") or _CACHE / "os-root.tar")


def opened(tar: Path) -> BufferedReader:
    """The tar, open for reading.

    Args:
        tar: Its path.

    Raises:
        UnavailableError: It is missing or closed to this user.
    """
    try:
        return tar.open("rb")
    except OSError as error:
        raise UnavailableError(
            f"The OS benchmark's root {tar} cannot be read ({error.strerror}): make it once with `make os-root`, or "
            f"name it in CYCLEQD_OS_ROOT."
        ) from error


def unpacked(tar: Path, keeper: Keeper, scratch: Path, sha256: str = "") -> Path:
    """The folder with the unpacked tar, kept for later runs: beside the tar or in ~/.cache/cycleqd; else in `scratch`.

    Its name holds the tar's sha256 and the machines' user ids; it appears complete or not at all.

    Args:
        tar: The root's tar.
        keeper: What unpacks it, with those ids.
        scratch: A folder that is removed after the run.
        sha256: The digest that the tar must have; empty for any.

    Raises:
        InvalidInputError: The tar has another digest.
        UnavailableError: There is no tar, or no folder to unpack it in.
    """
    with opened(tar) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and found != sha256:
        raise InvalidInputError(
            f"The OS benchmark's root {tar} has sha256 {found}, but root_sha256 is {sha256}: use the root of that run."
        )
    name = f"os-root-{found[:16]}-{id_range()[0]}-{id_range()[1]}"
    parents = [tar.parent, _CACHE, *([scratch] if _removable() else [])]
    kept = [parent / name for parent in parents if (parent / name).is_dir()]
    if not kept:
        kept = [_writable(parents) / name]
        _unpack(tar, kept[0], keeper)
    return kept[0] / "root"


def _removable() -> bool:
    """Whether this process can delete files of the machines' users: the scratch folder is deleted after the run."""
    return os.geteuid() == 0 or id_range()[1] == 1


def _writable(folders: Sequence[Path]) -> Path:
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise UnavailableError(
        f"The OS benchmark's root can be unpacked in none of {', '.join(map(str, folders))}: make one of them writable."
    )


def _unpack(tar: Path, folder: Path, keeper: Keeper) -> None:
    with tempfile.TemporaryDirectory(prefix=".os-root-", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch, "made")
        made.mkdir()
        made.chmod(0o777)  # it is filled by user 0 of the machines, who is nobody here
        keeper.unpack(tar, made)
        made.chmod(0o755)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has just made it
                raise
