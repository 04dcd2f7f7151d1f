"""Where a command's configuration comes from: its file, a profile laid over it, and flags that override both."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cycleqd.search.config import Config


@dataclass(frozen=True)
class ConfigSource:
    """`changes`: keys of `place` with the values of flags; None where a flag was not used."""

    path: Path
    profile: Path | None = None
    changes: Mapping[str, object] = field(default_factory=dict)

    def changed(self, **changes: object) -> ConfigSource:
        """The same files under other flags.

        Args:
            changes: Keys of `place` as above.
        """
        return replace(self, changes={**self.changes, **changes})

    def load(self) -> Config:
        """The configuration. Raises InvalidInputError with one sentence a problem."""
        from cycleqd.search.config import load, placed

        changes = {name: value for name, value in self.changes.items() if value is not None}
        config = load(self.path, self.profile)
        return placed(config, **changes) if changes else config

    @property
    def flags(self) -> str:
        """The same files and cluster for another command, as they are typed."""
        words = ["-c", str(self.path), *(["--profile", str(self.profile)] if self.profile else [])]
        for name in ("endpoint", "namespace"):
            words += [f"--{name}", str(self.changes[name])] if self.changes.get(name) else []
        return shlex.join(words)
