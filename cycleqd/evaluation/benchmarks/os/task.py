"""AgentBench's os-interaction: a model answers a question about a Linux system, or changes it, in a shell.

One sample, from the conversation to the verdict:

    user       ... How many hidden files are in /home? (instructions and an example before it, all from the record)
    assistant  Think: I list them. Act: bash
               ```bash
               ls -a /home | grep -c "^\\."
               ```
    user       The output of the OS:

               8
    assistant  Act: answer(8)

Now the record's `example_script` runs in the same system, and a comparator gets the answer and the script's output:
equal, passed. Every sample has a machine of its own (sandbox/machine.py), made when the first reply needs it.
docs/benchmarks-os.md says which rules are AgentBench's, what differs, and what the samples need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from cycleqd.errors import EvaluationError, UnavailableError
from cycleqd.evaluation.benchmarks.inputs import BenchmarkSettings, filled, named_rounds, positions, selected
from cycleqd.evaluation.benchmarks.os.needs import check_needs, machine_offers
from cycleqd.evaluation.benchmarks.os.records import read
from cycleqd.evaluation.benchmarks.os.root import default_tar, opened, unpacked
from cycleqd.evaluation.benchmarks.os.rules import Action, action, reads_only_arguments, seeded, shown
from cycleqd.evaluation.sandbox import MACHINE_LIMITS, MIB, Finished, Keeper, Machine, MachinePlan, Shell
from cycleqd.evaluation.sandbox import preflight as sandbox_preflight
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace

Script = tuple[str, str]
"""(language, text)"""
_LIMITS = replace(MACHINE_LIMITS, wall=math.inf)  # an episode waits for the model; commands have limits of their own
_JUDGE_LIMITS = replace(_LIMITS, processes=512, memory=4096 * MIB)  # comparators of all workers at once
_SETTLING = 2.0
"""Seconds that programs which set-up scripts leave in the background (task 60's five) have to start."""
_LONGEST_ARGUMENT = 1 << 15


class OsSettings(BenchmarkSettings):
    """Settings of the OS task, all optional."""

    task: ClassVar[str] = "OS"

    ids: Any = None
    """Which records to use: a list of 0-based positions, or the name of a JSON file with one in the data's folder."""
    exclude: Any = None
    """Positions to leave out of them, in the same form: where this machine cannot run them."""
    max_rounds: int = Field(5, ge=1)
    """How many replies an episode may have; "paper" is 5 as in CycleQD's code, "agentbench" that project's 8."""
    prompt: str | None = None
    """A `str.format` template over the record's `description`, which replaces the record's conversation."""
    root: Literal["image", "host"] = "image"
    """The machines' system: one of their own (made by `make os-root`), or this machine's /usr in an empty one."""
    root_sha256: str = ""
    """The sha256 that the image must have; empty for any."""
    command_seconds: float = Field(5.0, gt=0)
    """Wall time of a command of the model."""
    _rounds = field_validator("max_rounds", mode="before")(named_rounds(paper=5, agentbench=8))
    script_seconds: float = Field(30.0, gt=0)
    """Wall time of a record's script; a late one goes on alone for as long again."""


class OsEpisode(Episode):
    """The conversation about one machine. `answer` is None while there is none and after "finish"."""

    def __init__(self, task: OsTask, sample: Sample, messages: Sequence[Message]) -> None:
        super().__init__(sample, messages)
        self._task = task
        self._machine: Machine | None = None
        self._shell: Shell | None = None
        self.answer: str | None = None
        self.malformed = False
        self.out_of_rounds = False
        self.verdict: Verdict | None = None

    def next(self, reply: str) -> list[Message] | None:
        """Run the reply's commands and return the conversation with their output; judge after any other action.

        The episode is judged as soon as it is over, so that only episodes which wait for the model hold a machine.
        """
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})
        kind, content = action(reply)
        if kind is Action.BASH:
            machine = self.machine()
            assert self._shell is not None  # it comes with the machine
            output, _ = self._shell.execute(content)
            self.messages.append({"role": "user", "content": shown(output)})
            self.out_of_rounds = len(self.replies) == self._task.options.max_rounds
            if not (self.out_of_rounds or machine.reason):
                return self.messages
            self.answer = ""
        else:
            self.malformed = kind is Action.NONE
            self.answer = content if kind is Action.ANSWER else None
        self.verdict = self._task.judge(self)
        self.close()
        return None

    def machine(self) -> Machine:
        """The sample's machine, set up by the record's scripts when it is first asked for."""
        if self._machine is None:
            self._machine = self._task.new_machine()
            # The shell comes first, as in AgentBench: task 28 depends on it.
            self._shell = Shell(self._machine, self._task.options.command_seconds)
            for language, text in self.sample.record["init_script"]:
                self._set_up(self._machine, (language, seeded(text, self.sample.id) if language == "bash" else text))
            if self.sample.record["start"]:
                self._shell.execute(self.sample.record["start"][1])
            self._machine.settle(_SETTLING)
        return self._machine

    def _set_up(self, machine: Machine, script: Script) -> None:
        done = machine.run(command(script, ()), self._task.options.script_seconds)
        if done.reason:
            raise EvaluationError(
                f"The set-up script of OS sample {self.sample.id} was ended by the limit on {done.reason}; exclude the "
                f"sample or raise script_seconds."
            )

    def close(self) -> None:
        """Kill everything in the machine and drop its files. Calling it again does nothing."""
        shell, machine, self._shell, self._machine = self._shell, self._machine, None, None
        if shell is not None:
            shell.close()
        if machine is not None:
            machine.close()


class OsTask(Task):
    """os-interaction. The data are AgentBench's records (samples.json); a sample's id is its 0-based position."""

    method_version = 2

    def __init__(self, settings: Mapping[str, Any], workspace: Workspace) -> None:
        super().__init__(settings, workspace)
        self.options = OsSettings.read(settings)
        self._stack = ExitStack()

    def preflight(self) -> list[str]:
        """What is missing to make machines here."""
        problems = sandbox_preflight()
        if self.options.root == "image":
            try:
                opened(default_tar()).close()
            except UnavailableError as error:
                problems.append(str(error))
        if not problems and (reason := machine_offers().problem):
            problems.append(reason)
        return problems

    @classmethod
    def in_pods(cls, settings: Mapping[str, Any]) -> list[str]:
        """Samples that use users or processes, unless some are excluded already."""
        if settings.get("root", "image") == "host" or settings.get("exclude"):
            return []
        return [
            "some OS samples need user ids or a /proc of their own, which pods lack, and seeding would refuse them: "
            "set exclude (docs/kubernetes.md lists AgentBench's), which is frozen once the evolution is seeded"
        ]

    @classmethod
    def memory(cls, settings: Mapping[str, Any], workers: int) -> int:
        """A machine and its two file systems for each worker, and the comparators' machine."""
        return workers * (_LIMITS.memory + 2 * _LIMITS.scratch) + _JUDGE_LIMITS.memory

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._keeper = stack.enter_context(Keeper())
            lower = None
            if self.options.root == "image":
                lower = unpacked(default_tar(), self._keeper, self.workspace.scratch, self.options.root_sha256)
            self._plan = MachinePlan(lower=lower, proc=machine_offers().proc, limits=_LIMITS)
            plan = replace(self._plan, limits=_JUDGE_LIMITS)
            self._judge = stack.enter_context(self._keeper.open(plan))  # no command of a model ever runs there
            if not self._judge.run(["python3", "-c", ""], self.options.script_seconds).ok:
                raise UnavailableError("The OS task's comparators need python3 below /usr: `apt-get install python3`.")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def new_machine(self) -> Machine:
        """A fresh machine; the caller closes it."""
        return self._keeper.open(self._plan)

    def load(self, data: Path) -> list[Sample]:
        """Read the records. Refuses those that cannot run here (docs/benchmarks-os.md) unless they are excluded."""
        file = data / "samples.json" if data.is_dir() else data
        samples = selected(read(file), self.options.ids, file)
        left_out = set(positions(self.options.exclude, file) or ())
        samples = [sample for sample in samples if sample.id not in left_out]
        check_needs(samples, machine_offers())
        return samples

    def start(self, sample: Sample) -> OsEpisode:
        """The first prompt; the machine is made when a reply needs it."""
        if self.options.prompt is None:
            return OsEpisode(self, sample, sample.record["problem"])
        text = filled(self.options.prompt, {"description": sample.record["description"]}, f"record {sample.id}")
        return OsEpisode(self, sample, [{"role": "user", "content": text}])

    def verdict(self, episode: Episode) -> Verdict:
        """What the episode's end was judged as."""
        assert isinstance(episode, OsEpisode) and episode.verdict is not None
        return episode.verdict

    def judge(self, episode: OsEpisode) -> Verdict:
        """Judge by the record's match, or by its scripts: each gets the answer and the earlier scripts' output.

        Args:
            episode: One that is over, its machine still there.
        """
        record = episode.sample.record
        if episode.malformed:
            return Verdict(Outcome.FORMAT, "no action: neither Act: bash, finish nor answer(...)")
        machine = episode.machine()
        if machine.reason:
            outcome = Outcome.TIMEOUT if machine.reason in ("cpu", "wall") else Outcome.ERROR
            return Verdict(outcome, f"the machine was ended by the limit on {machine.reason}")
        verdict = self._matched(episode) if record["match"] else self._checked(episode, machine)
        if not verdict.passed and episode.out_of_rounds:
            return replace(verdict, reason=f"no answer in {self.options.max_rounds} rounds; {verdict.reason}")
        return verdict

    def _matched(self, episode: OsEpisode) -> Verdict:
        match = episode.sample.record["match"]
        if episode.answer is None:
            return _verdict(False, "there is no answer to compare with the record's")
        answer = episode.answer.strip() if match.get("strip", True) else episode.answer
        if "regex" in match:
            found = re.search(match["regex"], answer) is not None
            return _verdict(found, "searched the answer for the record's expression")
        return _verdict(answer == match["answer"], "compared the answer with the record's")

    def _checked(self, episode: OsEpisode, machine: Machine) -> Verdict:
        machine.freeze()  # what the model left running can neither watch nor disturb the scripts
        record = episode.sample.record
        arguments = [str(episode.answer)]
        for number, entry in enumerate(record["check"], 1):
            script: Script = entry or record["example_script"]
            if any(len(text) > _LONGEST_ARGUMENT or not _is_argument(text) for text in arguments):
                return _verdict(False, f"script {number} was not run: the answer or an output cannot be an argument")
            runs_in = self._judge if reads_only_arguments(script) else machine
            done = runs_in.run(command(script, arguments), self.options.script_seconds)
            if self._judge.reason:
                raise EvaluationError(f"The OS task's comparators were ended by the limit on {self._judge.reason}.")
            if done.timed_out:
                return Verdict(Outcome.TIMEOUT, f"script {number} was ended by the limit on {done.reason}")
            if not done.ok:
                return _verdict(False, f"script {number} {_end(done)}")
            arguments.append(done.stdout.decode(errors="replace"))
        return _verdict(True, f"all {len(record['check'])} scripts agreed")


def _is_argument(text: str) -> bool:
    """Whether a program can be given it: not half a surrogate pair, nor a null character."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _verdict(passed: bool, reason: str) -> Verdict:
    return Verdict(Outcome.PASSED if passed else Outcome.WRONG, reason)


def command(script: Script, arguments: Sequence[str]) -> list[str]:
    """The program that runs a record's script, and its arguments.

    Args:
        script: (language, text).
        arguments: What the script gets: from $1 on in bash, from argv[1] on in Python.
    """
    language, text = script
    if language == "python":
        return ["python3", "-c", text, *arguments]
    return ["bash", "-c", text, *(["--", *arguments] if arguments else [])]


def _end(done: Finished) -> str:
    return f"was ended by the limit on {done.reason}" if done.reason else f"exited with {done.returncode}"
