"""What is lost on a real cluster goes on by itself under `drive`, and nothing that was finished is done again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.evolution import Evolution, make, wait_for

pytestmark = pytest.mark.timeout(3 * 3600)
RUN = "generation-000000"
BALLAST = "/tmp/ballast"
HOARD = f"""
        import os
        while os.path.exists("{BALLAST}"):
            self.__dict__.setdefault("hoard", []).append(b"x" * (64 << 20))
"""
KILL = """
import os, signal
for name in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{name}/cmdline", "rb") as file:
        if b"executor_main" in file.read() and int(name) != os.getpid():
            os.kill(int(name), signal.SIGKILL)
"""


def with_ballast(code: str) -> str:
    """The tasks' class, which fills its memory where it finds a file that the test puts into its pod."""
    head, found, rest = code.partition("    def start(self, sample: Sample) -> Episode:\n")
    assert found
    return f"{head}{found}{HOARD.lstrip(chr(10))}{rest}"


@pytest.fixture
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evolution]:
    """One generation is due; drivers repeat what fails twice."""
    made = make(tmp_path_factory.mktemp("repeats"), generations=1, retries=2, plugin=with_ballast)
    made.call("submit")
    wait_for(lambda: made.state("seeding") == "SUCCEEDED")
    yield made
    made.call("cancel")


def begin(evolution: Evolution) -> str:
    run: str = evolution.json("submit")["run"]
    return run


def goes_on(evolution: Evolution, run: str) -> None:
    """Drive to the end: the step has one run, and what had been finished before was not computed again."""
    before = evolution.made()
    evolution.call("drive")
    assert [(one["run"], one["state"]) for one in evolution.runs()[RUN]] == [(run, "SUCCEEDED")]
    assert {key: at for key, at in evolution.made().items() if key in before} == before
    assert evolution.snapshot() == 1


def test_a_merge_that_is_killed_inside_the_loop_runs_again(seeded: Evolution) -> None:
    run = begin(seeded)
    seeded.kubectl("exec", seeded.pod(run, "merge"), "-c", "main", "--", "python", "-c", KILL)
    wait_for(lambda: seeded.state(RUN) == "FAILED")
    assert "no task recorded why" in seeded.call("logs", RUN) and "merge" in seeded.call("logs", RUN)
    goes_on(seeded, run)


def test_an_evaluation_whose_first_attempt_is_killed_for_its_memory_runs_again(seeded: Evolution) -> None:
    run = begin(seeded)
    seeded.kubectl("exec", seeded.pod(run, "evaluate-models"), "-c", "main", "--", "touch", BALLAST)
    wait_for(lambda: seeded.state(RUN) == "FAILED")
    goes_on(seeded, run)


def test_a_node_that_is_cordoned_and_drained_loses_nothing(seeded: Evolution) -> None:
    """Only pods of this run are driven away; they are deleted, since a disruption budget forbids to evict them."""
    run = begin(seeded)
    pod = seeded.pod(run, "merge")
    node = seeded.kubectl("get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
    flags = ("--disable-eviction", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
    try:
        seeded.kubectl("drain", node, f"--pod-selector=pipeline/runid={run}", *flags)
    finally:
        seeded.kubectl("uncordon", node)
    goes_on(seeded, run)
