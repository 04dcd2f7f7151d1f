"""A command's access to an evolution: its configuration, its services, its store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cycleqd.cli.output import warn
from cycleqd.cli.source import ConfigSource
from cycleqd.errors import ConflictError, InvalidInputError
from cycleqd.run.local.services import running
from cycleqd.search import state as states
from cycleqd.search.config import Config
from cycleqd.search.state import State
from cycleqd.storage import layout
from cycleqd.storage.differences import differences
from cycleqd.storage.evolution import current, find_head, load_config
from cycleqd.storage.frozen import adopt
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings


@dataclass(frozen=True)
class Session:
    """An evolution within reach. `config` is the file's; `seeded` and `state` are what S3 holds."""

    config: Config
    settings: Settings
    store: Store
    environment: dict[str, str]

    def seeded(self) -> Config:
        """The configuration as it was frozen, with the file's place. Raises ConflictError before seeding."""
        if not self.store.exists(layout.CONFIG):
            raise ConflictError(
                f"evolution '{self.config.name}' does not exist yet in {self.store.url('')}: run it first"
            )
        return load_config(self.store).model_copy(update={"place": self.config.place})

    def state(self) -> State:
        """The current snapshot. Raises ConflictError before seeding has ended."""
        if find_head(self.store) is None:
            raise ConflictError(f"evolution '{self.config.name}' has no archives yet: `cycleqd run` seeds them")
        return current(self.store)[1]

    def model(self, name: str) -> str:
        """A model's id; "best" is the living model with the best average.

        Args:
            name: An id, or "best".

        Raises:
            InvalidInputError: No such model was ever made.
        """
        if name == "best":
            state = self.state()
            return states.best_living(state).model.id
        layout.home(name)
        if not any(self.store.exists(layout.result(folder)) for folder in layout.makers(name)):
            raise InvalidInputError(
                f"evolution '{self.config.name}' has no model '{name}'; `cycleqd models` lists them"
            )
        return name


def adopted(store: Store, config: Config) -> Config:
    """The configuration with what is frozen for all that it leaves out; says what else differs from what was seeded.

    Args:
        store: The evolution.
        config: The file's.

    Raises:
        ConflictError: It sets keys to other values than the frozen ones.
    """
    whole = adopt(store, config)
    for sentence in differences(store, config, whole):
        warn(sentence)
    return whole


@contextlib.contextmanager
def session(source: ConfigSource, tracking: bool = False) -> Iterator[Session]:
    """Read the configuration and reach (if embedded: start) its services.

    Args:
        source: Files and flags that make the configuration.
        tracking: MLflow is needed, too.
    """
    config = source.load()
    with running(config.place, tracking) as environment:
        yield connect(config, environment)


def connect(config: Config, environment: dict[str, str]) -> Session:
    """The session of a configuration whose services run.

    Args:
        config: The file's.
        environment: What `running` yields; it is set for this process.
    """
    os.environ.update(environment)
    settings = Settings.from_environment()
    return Session(config, settings, Store.connect(settings, config.name), environment)
