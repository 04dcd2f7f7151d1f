"""Boxes for hostile programs: bubblewrap, limits, a watcher. docs/sandbox.md describes what they protect.

    finished = run(["/usr/bin/python3", "-c", "print(1)"], limits=Limits(wall=5))

`run` runs a program to its end; `start` starts one (`Supervised`) to exchange data with over pipes; `WarmPool` runs a
Python script's `main()` again and again without a start each time; `Keeper` makes machines, which are boxes with a root
file system and users of their own, and `Shell` is a login shell in one. Other packages import from here only.
"""

from cycleqd.evaluation.sandbox.box import Supervised, preflight, run, start
from cycleqd.evaluation.sandbox.command import NAME_SPACES, Entry, Setup, become_user, entry, interpreter, unused_uid
from cycleqd.evaluation.sandbox.ids import id_range
from cycleqd.evaluation.sandbox.limits import MIB, Finished, Limits
from cycleqd.evaluation.sandbox.machine import LIMITS as MACHINE_LIMITS
from cycleqd.evaluation.sandbox.machine import Keeper, Machine, MachinePlan
from cycleqd.evaluation.sandbox.shell import Shell
from cycleqd.evaluation.sandbox.text import printable, stable
from cycleqd.evaluation.sandbox.turnstile import Turnstile
from cycleqd.evaluation.sandbox.warm import WarmPool, WarmPython
from cycleqd.evaluation.sandbox.watch import descendants

__all__ = (  # noqa: RUF022 -- by subject
    "run", "start", "Supervised", "Limits", "Finished", "MIB", "Setup", "preflight",
    "Entry", "entry", "interpreter", "unused_uid", "become_user", "NAME_SPACES",
    "WarmPool", "WarmPython",
    "Keeper", "Machine", "MachinePlan", "MACHINE_LIMITS", "Shell", "id_range",
    "Turnstile", "printable", "stable", "descendants",
)  # fmt: skip
