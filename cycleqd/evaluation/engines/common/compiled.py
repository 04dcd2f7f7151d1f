"""vLLM's cache of what it compiles, in a folder that outlives the process and that others share (CYCLEQD_COMPILED).

vLLM writes its files in place: of two that compile at once, one could read half of what the other writes. So one
process at a time has the folder; whoever finds it taken compiles for itself.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

FOLDER = "CYCLEQD_COMPILED"


class CompileCache:
    """The folder, as far as this process gets it; it is free again when the process ends, however it ends."""

    def __init__(self) -> None:
        self._lock: int | None = None

    def take(self, model: Path) -> tuple[Path, dict[str, str]]:
        """Where to start a model from, and the variables to start it with.

        vLLM finds in its cache what was compiled for a model of the same path. Each child has a path of its own, so
        the folder has a link that leads to whichever is started.

        Args:
            model: The model's folder.
        """
        named = os.environ.get(FOLDER)
        if not named:
            return model, {}
        folder, link = Path(named), Path(named) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return model, {}
            self._lock = lock
        link.unlink(missing_ok=True)
        link.symlink_to(model.absolute())
        return link, {"VLLM_CACHE_ROOT": str(folder)}

    def free(self) -> None:
        """Leave it to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
