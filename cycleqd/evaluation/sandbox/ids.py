"""Which user ids outside the users of machines have.

A range, where this process can map one, so that a machine has users; else only its own id, which is then root there and
the only user. Whether a range can be mapped does not show in files and programs (`newuidmap` is refused in a container
without capabilities), so it is tried once, by a program that does what the keeper does.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cycleqd.evaluation.sandbox import command, keeper, kernel

_COUNT = 65536  # user ids of a machine
_FEWEST = 2000  # users that are made in a machine are numbered from 1000 on
_BASE = 2_000_000_000  # the first of a machine's ids outside, when root is free to choose


@functools.cache
def id_range() -> tuple[int, int]:
    """The ids a machine's users get outside, (first, count); count is 1 where this process can map only its own."""
    return next((ids for ids in _candidates() if ids[1] >= _FEWEST and can_map(ids)), (os.geteuid(), 1))


def _candidates() -> list[tuple[int, int]]:
    """The ranges (first, count) that this process should be able to map, the best first."""
    if os.geteuid() == 0:
        start, _, length = command.own_ids()
        end = start + length
        return [(_BASE, _COUNT) if end > _BASE + _COUNT else (end - length // 2, length // 2)]
    return sorted(_lent("/etc/subuid") & _lent("/etc/subgid"), key=lambda ids: -ids[1])


def _lent(file: str) -> set[tuple[int, int]]:
    """The ranges (first, count) that /etc/subuid or /etc/subgid lends to this user."""
    names, lines = {str(os.geteuid())}, list[list[str]]()
    with suppress(KeyError):
        names.add(pwd.getpwuid(os.geteuid()).pw_name)
    with suppress(OSError):
        lines = [line.split(":") for line in Path(file).read_text().splitlines()]
    return {
        (int(first), int(count))
        for name, first, count in (line for line in lines if len(line) == 3)
        if name in names and first.isdecimal() and count.isdecimal()
    }


def can_map(ids: tuple[int, int]) -> bool:
    """Whether a user name space with these ids can be made and entered, found by making one.

    Args:
        ids: (first, count).
    """
    done = subprocess.run(
        [sys.executable, "-S", "-m", "cycleqd.evaluation.sandbox.ids", *map(str, ids)],
        env={"PATH": keeper.PATH, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def _attempt(first: int, count: int) -> int:
    """Make such a name space and become its root; the exit status is 0 when that worked."""

    def become_nothing(enter: Callable[[], None]) -> None:
        enter()
        keeper.become_root()
        os.execv("/usr/bin/true", ["true"])

    _, status = os.waitpid(keeper.fork_into(kernel.NEW_USER, (first, count), become_nothing), 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_attempt(int(sys.argv[1]), int(sys.argv[2])))
