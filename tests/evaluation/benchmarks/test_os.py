"""The OS benchmark on records of our own: AgentBench's rules, gold, wrong and malformed answers, both kinds of root."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import EvaluationError, InvalidInputError, UnavailableError
from cycleqd.evaluation.benchmarks.os.needs import NO_PROCESSES, NO_USERS, Offers, check_needs, machine_offers, needs
from cycleqd.evaluation.benchmarks.os.records import read
from cycleqd.evaluation.benchmarks.os.rules import Action, action, reads_only_arguments, seeded, shown
from cycleqd.evaluation.benchmarks.os.task import OsTask
from cycleqd.evaluation.sandbox.shell import clean
from cycleqd.evaluation.task import Outcome, Verdict, Workspace
from tests.os_play import bash, gold, play, play_all, says

pytestmark = pytest.mark.timeout(900)  # the first to need the root may have to make it
SMALL = Path(__file__).parents[2] / "data/os_small.json"
HOST = {"root": "host", "ids": list(range(8))}  # the last two have users that log in, whom only an image knows


@pytest.fixture
def task(tmp_path: Path) -> Iterator[OsTask]:
    with opened(HOST, tmp_path) as entered:
        yield entered


def opened(settings: Mapping[str, Any], scratch: Path) -> OsTask:
    task = OsTask(settings, Workspace(scratch, workers=2))
    if problems := task.preflight():
        pytest.skip(problems[0])
    return task


@pytest.mark.parametrize(
    ("reply", "kind", "content"),
    [
        ("Think: x\nAct: bash\n\n```bash\nls\n```", Action.BASH, "ls"),
        ("Act: bash\n```bash\nls\n```\nand\n```bash\npwd\nid\n```", Action.BASH, "ls\n\npwd\nid"),
        ("Act: bash\n```sh\nls\n```", Action.BASH, ""),
        ("Act: Bash it\n```bash\n\n```", Action.BASH, ""),
        ("Act: finish", Action.FINISH, ""),
        ("Act: FINISHED now", Action.FINISH, ""),
        ("Act: answer(4 (or so) files) .", Action.ANSWER, "4 (or so) files"),
        ("Act: answer()", Action.ANSWER, ""),
        ("Act: answer(1)\nAct: answer(2)", Action.ANSWER, "2"),
        ("Act: answer(1)\nAct: answer 2", Action.ANSWER, "1"),
        ("Act: finish\nAct: nothing", Action.FINISH, ""),
        ("Act:\n\nanswer(7)", Action.ANSWER, "7"),
        ("the answer is 7", Action.NONE, ""),
        ("Act: answer 7", Action.NONE, ""),
        ("", Action.NONE, ""),
    ],
)
def test_action_is_the_last_act_that_can_be_read(reply: str, kind: Action, content: str) -> None:
    assert action(reply) == (kind, content)


@pytest.mark.parametrize("length", [1, 780, 781, 800])
def test_outputs_up_to_800_characters_are_whole(length: int) -> None:
    assert shown("é" * length) == "The output of the OS:\n\n" + "é" * length


def test_longer_outputs_keep_780_characters() -> None:
    tail = "\n[truncated because the output is too long]"
    assert shown("é" * 801) == "The output of the OS:\n\n" + "é" * 780 + tail
    assert shown("") == "The output of the OS is empty."


def test_terminal_output_becomes_plain_text() -> None:
    assert clean(b"\x1b[31mred\x1b[0m\r\n\x1b]0;title\x07a\tb\x00\x08\x9b\r\n\r\n") == "red\na\tb�"


@pytest.mark.parametrize(
    ("script", "pure"),
    [
        ("from sys import argv\nexit(int(argv[1]) != int(argv[2]))", True),
        ("import sys\ndef same(a, b):\n    return a.strip() == b\nsys.exit(not same(*sys.argv[1:]))", True),
        ("import os\nexit(os.path.exists('/x'))", False),
        ("from sys import argv\nexit(open(argv[1]).read() != '1')", False),
        ("exit(not __import__('os').path.exists('/x'))", False),
        ("exit(", False),
    ],
)
def test_only_comparators_leave_the_machine(script: str, pure: bool) -> None:
    assert reads_only_arguments(("python", script)) is pure
    assert not reads_only_arguments(("bash", script))


def test_seed_follows_the_sample() -> None:
    assert seeded("echo", "3") == seeded("echo", "3") != seeded("echo", "4")


def test_gold_passes_wrong_and_malformed_fail(task: OsTask) -> None:
    samples = [sample for sample in task.load(SMALL) if sample.id != "7" or machine_offers().proc]
    outcomes = {
        model: play_all(task, samples, model, workers=2)
        for model in (gold, says("Act: answer(no)"), says("I am done."))
    }
    right, wrong, malformed = outcomes.values()
    assert {one: verdict.reason for one, verdict in right.items() if not verdict.passed} == {}
    assert {verdict.outcome for verdict in wrong.values()} == {Outcome.WRONG}
    assert {verdict.outcome for verdict in malformed.values()} == {Outcome.FORMAT}


def test_verdicts_do_not_depend_on_workers_or_the_run(task: OsTask) -> None:
    samples = task.load(SMALL)[:7]
    first = play_all(task, samples, gold, workers=1)
    assert play_all(task, samples, gold, workers=8) == first == play_all(task, samples, gold, workers=1)


def test_every_sample_has_files_of_its_own_and_one_shell_for_all_rounds(task: OsTask) -> None:
    sample = task.load(SMALL)[0]
    first, second = task.start(sample), task.start(sample)
    try:
        first.next(bash("cd /srv; mine=7; touch letters/6"))
        first.next(bash("pwd; echo $mine; ls letters | wc -l"))
        assert first.messages[-1]["content"] == "The output of the OS:\n\n/srv\n7\n6"
        second.next(bash("pwd; ls /srv/letters | wc -l; echo mine $mine"))
        assert second.messages[-1]["content"] == "The output of the OS:\n\n/\n5\nmine"
    finally:
        first.close()
        second.close()


def test_random_set_up_is_the_same_each_time(task: OsTask) -> None:
    sample = task.load(SMALL)[4]
    replies = [play(task, sample, gold)[1].replies[-1] for _ in range(2)]
    assert replies[0] == replies[1]


def test_rounds_run_out_and_the_state_is_judged_with_an_empty_answer(tmp_path: Path) -> None:
    with opened(HOST | {"max_rounds": 1, "prompt": "$ {description}"}, tmp_path) as one_round:
        samples = one_round.load(SMALL)
        verdict, episode = play(one_round, samples[1], gold)
        assert verdict.passed and len(episode.replies) == 1
        assert episode.messages[0]["content"] == "$ Make the directory /srv/box, readable by its owner only."
        verdict, _ = play(one_round, samples[0], gold)
        assert (verdict.outcome, verdict.reason[:22]) == (Outcome.WRONG, "no answer in 1 rounds;")


def test_a_slow_command_leaves_the_shell_usable(tmp_path: Path) -> None:
    with opened(HOST | {"command_seconds": 2}, tmp_path) as hasty:
        episode = hasty.start(hasty.load(SMALL)[0])
        try:
            episode.next(bash("echo before; sleep 2.5; echo late"))
            assert episode.messages[-1]["content"] == "The output of the OS:\n\nbefore"
            episode.next(bash("echo next"))
            assert episode.messages[-1]["content"].endswith("late\nnext")
            episode.next(bash("echo 'an open quote"))
            episode.next(bash("its end'; exit"))
            episode.next(bash("echo after the end"))
            assert episode.messages[-1]["content"] == "The output of the OS is empty."
            episode.next("Act: answer(5)")
            assert hasty.verdict(episode).passed
        finally:
            episode.close()


def test_a_check_that_never_ends_is_a_time_out(tmp_path: Path) -> None:
    with opened(HOST | {"script_seconds": 1}, tmp_path) as hasty:
        sample = hasty.load(SMALL)[6]
        endless = "mkdir /root/bin; printf '#!/bin/bash\\nsleep 60\\n' > /root/bin/double; chmod +x /root/bin/double"
        verdict, _ = play(hasty, sample, lambda e: "Act: finish" if e.replies else bash(endless))
        assert (verdict.outcome, verdict.reason) == (Outcome.TIMEOUT, "script 1 was ended by the limit on wall")


def test_a_check_that_is_late_goes_on_alone_and_is_not_begun_anew(tmp_path: Path) -> None:
    slow = "mkdir /root/bin; printf '#!/bin/bash\\necho x >> /calls; sleep 0.7; echo $(($1 * 2))\\n' > /root/bin/double"
    replies = [bash(f"{slow}; chmod +x /root/bin/double"), "Act: finish"]
    with opened(HOST | {"script_seconds": 1}, tmp_path) as hasty:
        sample = hasty.load(SMALL)[6]
        checks = [*sample.record["check"], ("bash", "[ $(wc -l < /calls) = 2 ]")]
        sample = replace(sample, record={**sample.record, "check": checks})
        verdict, _ = play(hasty, sample, lambda e: replies[len(e.replies)])
        assert verdict == Verdict(Outcome.PASSED, "all 2 scripts agreed")


def test_a_late_set_up_goes_on_alone_and_an_endless_one_is_no_score(tmp_path: Path) -> None:
    with opened(HOST | {"script_seconds": 1}, tmp_path) as hasty:
        sample = hasty.load(SMALL)[6]
        late, endless = (
            replace(sample, record={**sample.record, "init_script": [("bash", f"sleep {seconds}; mkdir /late")]})
            for seconds in (1.3, 60)
        )
        _, episode = play(hasty, late, lambda e: bash("ls -d /late") if not e.replies else "Act: finish")
        assert episode.messages[-2]["content"] == "The output of the OS:\n\n/late"
        with pytest.raises(EvaluationError, match=r"set-up script of OS sample 6 .* limit on wall"):
            play(hasty, endless, gold)


def test_who_is_late_stands_still_until_nothing_runs_beside(task: OsTask) -> None:
    with task.new_machine() as other, task.new_machine() as late, ThreadPoolExecutor(1) as pool:
        beside = pool.submit(other.run, ["bash", "-c", "sleep 3; date +%s%N"], 30)
        while "sleep" not in {program for _, program, _ in other.processes()}:
            time.sleep(0.01)
        done = late.run(["bash", "-c", "for one in {1..12}; do sleep 0.1; done; date +%s%N"], 1)
    assert done.ok
    assert int(done.stdout) > int(beside.result().stdout)


def test_users_own_and_log_in(os_image: Path, tmp_path: Path) -> None:
    if not machine_offers().users:
        pytest.skip("this machine has no range of user ids for the machines' users")
    with opened({}, tmp_path) as task:
        verdicts = play_all(task, task.load(SMALL), gold, workers=2)
        assert {one: verdict.reason for one, verdict in verdicts.items() if not verdict.passed} == {}


def test_replacing_the_interpreter_does_not_change_a_comparison(os_image: Path, tmp_path: Path) -> None:
    with opened({"ids": [0]}, tmp_path) as task:
        sample = task.load(SMALL)[0]
        trick = "cp /bin/true /usr/bin/python3; cp /bin/true /usr/local/bin/python3"
        verdict, _ = play(task, sample, lambda e: "Act: answer(99)" if e.replies else bash(trick))
        assert (verdict.outcome, verdict.reason) == (Outcome.WRONG, "script 2 exited with 1")


def test_another_root_than_the_pinned_one_is_refused(os_image: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="root_sha256 is 00"), opened({"root_sha256": "00"}, tmp_path):
        pass


def test_what_a_machine_cannot_run_is_refused_unless_excluded(tmp_path: Path) -> None:
    samples = read(SMALL)
    assert [needs(sample) for sample in samples[6:9]] == [set(), {NO_PROCESSES}, {NO_USERS}]
    check_needs(samples, Offers("", users=True, proc=True))
    with pytest.raises(UnavailableError, match=r"cannot run 3 of .* exclude: \[7, 8, 9\]"):
        check_needs(samples, Offers("", users=False, proc=False))
    kept = OsTask({"exclude": [7, 8, 9]}, Workspace(tmp_path)).load(SMALL)
    assert [sample.id for sample in kept] == list("0123456")
    check_needs(kept, Offers("", users=False, proc=False))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"check": [["ruby", "exit"]]}, "Record 0 of .*ruby"),
        ({"check": []}, "neither a check nor a match"),
        ({"example_script": None}, "has none"),
        ({"init_script": "ls"}, "not an os-interaction record"),
    ],
)
def test_broken_records_are_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    records = json.loads(SMALL.read_text())
    records[0]["config"]["config"] |= change
    (tmp_path / "samples.json").write_text(json.dumps(records))
    with pytest.raises(InvalidInputError, match=said):
        OsTask({}, Workspace(tmp_path)).load(tmp_path)


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no setting 'rounds'"):
        OsTask({"rounds": 3}, Workspace(tmp_path))
    with pytest.raises(InvalidInputError, match="root is 'docker'"):
        OsTask({"root": "docker"}, Workspace(tmp_path))
    with pytest.raises(InvalidInputError, match=r"record 99, but .* has 10"):
        OsTask({"ids": [99]}, Workspace(tmp_path)).load(SMALL)
