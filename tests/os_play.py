"""What the tests of the OS benchmark share: a scripted model that knows the answers, and playing samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from cycleqd.evaluation.benchmarks.os.task import OsEpisode, OsTask
from cycleqd.evaluation.task import Sample, Verdict

Model = Callable[[OsEpisode], str]


def bash(text: str) -> str:
    """A reply that runs commands."""
    return f"Think: I run it.\n\nAct: bash\n\n```bash\n{text}\n```"


def gold(episode: OsEpisode) -> str:
    """The right answer if the record tells it; else run the example script and answer the last line that it shows."""
    record = episode.sample.record
    if record["match"]:
        known = record["match"].get("answer", "heron")
        return f"Act: answer({known})"
    if not episode.replies:
        return bash(record["example_script"][1])
    return f"Act: answer({episode.messages[-1]['content'].splitlines()[-1]})"


def says(reply: str) -> Model:
    """A model with one reply."""
    return lambda episode: reply


def play(task: OsTask, sample: Sample, model: Model) -> tuple[Verdict, OsEpisode]:
    """One episode from start to close."""
    episode = task.start(sample)
    try:
        while episode.next(model(episode)) is not None:
            pass
        return task.verdict(episode), episode
    finally:
        episode.close()


def play_all(task: OsTask, samples: Sequence[Sample], model: Model, workers: int) -> dict[str, Verdict]:
    """The verdicts by sample id."""
    with ThreadPoolExecutor(workers) as pool:
        verdicts = pool.map(lambda sample: play(task, sample, model)[0], samples)
        return {sample.id: verdict for sample, verdict in zip(samples, verdicts, strict=True)}
