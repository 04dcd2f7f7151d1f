"""Boxes for hostile programs: bubblewrap, limits, a watcher. docs/sandbox.md describes what they protect.

    finished = run(["/usr/bin/python3", "-c", "print(1)"], limits=Limits(wall=5))

`run` takes a program to its end; `start` gives a live one (`Supervised`), to talk to over its pipes; `WarmPool` runs a
Python script's `main()` again and again without a start each time; `machine.py` makes boxes with a root and users of
their own, for the operating system benchmark.
"""

from cycleqd.evaluation.sandbox.box import Supervised, preflight, run, start
from cycleqd.evaluation.sandbox.command import Entry, Setup, entry, interpreter
from cycleqd.evaluation.sandbox.limits import Finished, Limits
from cycleqd.evaluation.sandbox.text import printable
from cycleqd.evaluation.sandbox.warm import WarmPool, WarmPython

__all__ = [
    "Entry",
    "Finished",
    "Limits",
    "Setup",
    "Supervised",
    "WarmPool",
    "WarmPython",
    "entry",
    "interpreter",
    "preflight",
    "printable",
    "run",
    "start",
]
