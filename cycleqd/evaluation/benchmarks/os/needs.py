"""What the samples of os-interaction need of a machine that not every machine has, and what this machine has."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cycleqd.errors import UnavailableError
from cycleqd.evaluation.sandbox import Keeper, MachinePlan, id_range
from cycleqd.evaluation.task import Sample

_USERS = re.compile(r"\b(?:useradd|adduser|usermod|groupadd|chown|chgrp|runuser|sudo|su)\b")
_PROCESSES = re.compile(r"/proc\b|\b(?:ps|pgrep|pidof|top|free|uptime)\b|<\(")
_SECONDS = 30.0
NO_USERS = "some make users or change owners, which needs a range of user ids"
NO_PROCESSES = "some look at processes, which needs a /proc of their own"


@dataclass(frozen=True)
class Offers:
    """`problem`: why no machine can be made, empty when one can. `users`, `proc`: what machines have."""

    problem: str
    users: bool
    proc: bool


@functools.cache
def machine_offers() -> Offers:
    """What machines have here, found by making one or two in which a program does nothing."""
    users, problem = id_range()[1] > 1, ""
    for proc in (True, False):
        try:
            with Keeper() as keeper, keeper.open(MachinePlan(proc=proc)) as machine:
                done = machine.run(["true"], _SECONDS)
            if done.ok:
                return Offers("", users, proc)
            problem = f"A program that does nothing failed in a box: {done.stderr.decode(errors='replace').strip()}."
        except UnavailableError as error:
            problem = str(error)
    return Offers(problem, users, proc=False)


def needs(sample: Sample) -> set[str]:
    """What a sample's scripts need, of NO_USERS and NO_PROCESSES; judged by the words in them.

    Args:
        sample: A sample of os-interaction.
    """
    record = sample.record
    scripts = [*record["init_script"], record["start"], *record["check"], record["example_script"]]
    text = "\n".join(script[1] for script in scripts if script)
    return {need for need, words in ((NO_USERS, _USERS), (NO_PROCESSES, _PROCESSES)) if words.search(text)}


def check_needs(samples: Sequence[Sample], offers: Offers) -> None:
    """Refuse samples that cannot run on this machine.

    Args:
        samples: All that are to run.
        offers: What machines here have.

    Raises:
        UnavailableError: There are such samples; the message names them.
    """
    lacking = {need for need, offered in ((NO_USERS, offers.users), (NO_PROCESSES, offers.proc)) if not offered}
    found = {int(sample.id): lacks for sample in samples if (lacks := needs(sample) & lacking)}
    if found:
        reasons = "; ".join(sorted(set().union(*found.values())))
        raise UnavailableError(
            f"This machine cannot run {len(found)} of the OS samples ({reasons}): run as root outside a pod (or as "
            f"docs/benchmarks-os.md says), or set exclude: {sorted(found)}."
        )
