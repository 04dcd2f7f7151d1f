"""The fixtures of the commands' tests: those of the runs they look at."""

from tests.run.conftest import *  # noqa: F403
