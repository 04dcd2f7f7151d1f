"""Boxes for hostile programs: bubblewrap, limits, a watcher. docs/sandbox.md says what they protect and what not.

    finished = run(["/usr/bin/python3", "-c", "print(1)"], limits=Limits(wall=5))

`run` takes a program to its end; `start` gives a live one (`Supervised`), to talk to over its pipes; `Supervised` and
`launch` serve commands that build their own name spaces (the operating system benchmark's root).
"""

from components.evaluate.sandbox.box import Supervised, launch, memory_file, preflight, run, start
from components.evaluate.sandbox.command import Entry, Setup, entry, interpreter, proc_mounts, unused_uid
from components.evaluate.sandbox.limits import Finished, Limits
from components.evaluate.sandbox.text import printable
from components.evaluate.sandbox.warm import WarmPool, WarmPython

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
    "launch",
    "memory_file",
    "preflight",
    "printable",
    "proc_mounts",
    "run",
    "start",
    "unused_uid",
]
