"""Tokens that an evolution generates and the hours that takes: measured in its own records, else assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cycleqd.search.config import Config
from cycleqd.storage import layout
from cycleqd.storage.objects import Store

ASSUMED = {"code": 200, "db": 250, "os": 400}
"""Tokens of a sample's replies, all rounds together, of an instructed model; prompts of about 100, 400 and 1,200."""

ASSUMED_RATE = 5000.0
"""Tokens of replies that one GPU generates in a second, with the reading of prompts, for hundreds of samples at a time.

Public measurements with vLLM: 3,363 (a 7B on an A100), 12,500 (an 8B in bf16 on an H100); see docs/performance.md."""

_SAMPLED = 12  # records of each task that are read


@dataclass(frozen=True)
class Generated:
    """What models generated on a task, in the newest records: samples and tokens, and seconds of one engine."""

    samples: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Replies:
    """What an evolution generates.

    Attributes:
        tokens: Of all replies.
        a_sample: By task, of one sample's replies.
        assumed: The tasks of which no record says so, and what is supposed is `ASSUMED`, or the longest reply.
        rate: Tokens that one GPU generates in a second.
        rate_measured: Whether the rate is from records; else it is `ASSUMED_RATE`.
    """

    tokens: int
    a_sample: Mapping[str, int]
    assumed: tuple[str, ...]
    rate: float
    rate_measured: bool

    @property
    def hours(self) -> float:
        """Of one GPU, for generating alone: without engine starts, loading and judging."""
        return self.tokens / self.rate / 3600


def generated(store: Store, config: Config) -> dict[str, Generated]:
    """What the newest children, else the models that were seeded, generated on the search split.

    Args:
        store: The evolution.
        config: Names the tasks.

    Returns:
        By task, where there are records.
    """
    keys = [*sorted(store.list("models")), *sorted(store.list("generations"))]
    found = {}
    for task in config.search_tasks:
        ending = f"/evaluations/{task}/search"
        folders = [key.removesuffix("/run.json") for key in keys if key.endswith(f"{ending}/run.json")][-_SAMPLED:]
        runs = [store.find_json(layout.run(folder)) or {} for folder in folders]
        results = [store.find_json(layout.result(folder)) or {} for folder in folders]
        pairs = [(run, result["outputs"]["count"]) for run, result in zip(runs, results, strict=True) if run and result]
        if pairs:
            found[task] = Generated(
                samples=sum(count for _, count in pairs),
                tokens=sum(run["tokens"] for run, _ in pairs),
                seconds=sum(run["seconds"]["generating"] for run, _ in pairs),
            )
    return found


def replies(
    config: Config,
    samples: Mapping[str, Mapping[str, int]],
    searched: int,
    held_out: int,
    found: Mapping[str, Generated],
) -> Replies | None:
    """What is generated in an evolution; None where the samples of a task are not known.

    Args:
        config: The configuration.
        samples: Of each task the number of samples by split; a task may lack them.
        searched: Models that are scored on the search split of the search tasks.
        held_out: Models that are scored on the held-out split of all tasks.
        found: See `generated`.
    """
    total, a_sample = 0.0, {}
    for name, task in config.tasks.items():
        if not samples.get(name):
            return None
        each = ASSUMED.get(task.class_, task.generation.max_tokens)
        if name in found:
            each = round(found[name].tokens / found[name].samples)
        a_sample[name] = each
        total += each * samples[name]["test"] * held_out
        total += each * samples[name]["search"] * searched if name in config.search_tasks else 0
    seconds = sum(measured.seconds for measured in found.values()) * max(config.place.evaluate.gpu, 1)
    tokens = sum(measured.tokens for measured in found.values())
    rated = bool(seconds and tokens)
    assumed = tuple(name for name in config.tasks if name not in found)
    return Replies(round(total), a_sample, assumed, tokens / seconds if rated else ASSUMED_RATE, rated)
