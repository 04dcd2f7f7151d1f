"""Finding the root tar, and unpacking it with the user ids that the machines will have."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from components.evaluate.sandbox.machine import Keeper, id_range
from cycleqd.errors import InvalidInputError, UnavailableError


def default_tar() -> Path:
    """$CYCLEQD_OS_ROOT, else ~/.cache/cycleqd/os-root.tar."""
    return Path(os.environ.get("CYCLEQD_OS_ROOT") or Path.home() / ".cache/cycleqd/os-root.tar")


def unpacked(tar: Path, keeper: Keeper, scratch: Path, sha256: str = "") -> Path:
    """The folder with the unpacked tar: beside the tar, for later runs, where that can be written, else in `scratch`.

    The folder's name holds the tar's sha256 and the ids, and it appears complete or not at all. With `sha256`, a tar
    that differs from it is refused.
    """
    try:
        with tar.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnavailableError(
            f"The OS benchmark's root {tar} cannot be read ({error.strerror}): make it with `make os-root`, or name it "
            f"in CYCLEQD_OS_ROOT."
        ) from error
    if sha256 and found != sha256:
        raise InvalidInputError(
            f"The OS benchmark's root {tar} has sha256 {found}, but root_sha256 is {sha256}: use the root of that run."
        )
    name = f"os-root-{found[:16]}-{id_range()[0]}-{id_range()[1]}"
    parent = tar.parent if os.access(tar.parent, os.W_OK) else scratch
    folder = parent / name
    if not folder.is_dir():
        _unpack(tar, folder, keeper)
    return folder / "root"


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
