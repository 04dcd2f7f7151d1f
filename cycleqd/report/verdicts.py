"""Whether the search helped: the final model against the best expert, the naive merge and tuned task arithmetic, on
average and on the worst task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cycleqd.report.data import Compared, Split
from cycleqd.report.statistics import Gain, Worst, gain, worst_gain

SPLITS: dict[Split, str] = {"test": "held-out test split", "search": "split the search used"}


@dataclass(frozen=True)
class Finding:
    """One finding in a sentence or two. tone: "good" is better, "bad" is worse, "open" shows no difference."""

    text: str
    tone: str


@dataclass(frozen=True)
class Comparison:
    """The final model against a rival, which `label` names: of the averages over tasks, and of the worst tasks."""

    label: str
    average: Gain
    worst: Worst

    @property
    def tone(self) -> str:
        """What the averages show, as a finding's."""
        if not self.average.certain:
            return "open"
        return "good" if self.average.value > 0 else "bad"


def judged_split(data: Compared) -> Split:
    """The split to believe: held-out samples where the final model was scored on them.

    Args:
        data: Results.
    """
    return "test" if data.scored("test", "final") else "search"


def comparisons(data: Compared) -> Iterator[Comparison]:
    """The final model against each rival that was scored on the same samples; nothing before there is a final model.

    Args:
        data: Results.
    """
    split = judged_split(data)
    final = data.scored(split, "final")
    best_expert, _ = data.best_expert
    name = best_expert.partition("-")[2] + (", full" if best_expert in data.config.extracted else "")
    rivals = {best_expert: f"the best expert ({name})", "naive": "the naive merge"}
    if data.tuned is not None:
        rivals[data.tuned] = f"task arithmetic with tuned λ ({data.config.lambdas[data.tuned]:g})"
    for model, label in rivals.items():
        theirs = data.scored(split, model)
        if final is not None and theirs is not None:
            yield Comparison(label, gain(final, theirs), worst_gain(final, theirs))


def verdicts(data: Compared) -> list[Finding]:
    """A finding for each rival: an exact test of the averages, and the worst task.

    Args:
        data: Results.
    """
    where, found = SPLITS[judged_split(data)], []
    for one in comparisons(data):
        p = one.average.p
        test = f"exact test, p = {p:.2g}" if p >= 0.001 else "exact test, p < 0.001"
        said = {"open": "No difference is shown", "good": "It is better", "bad": "It is worse"}[one.tone]
        worst = one.worst
        ours, theirs = (f"{100 * score:.1f} % on {task}" for task, score in (worst.ours, worst.theirs))
        text = (
            f"Final model against {one.label}, {where}: {points(one.average)} on average. {said} ({test})."
            f" Worst task: {points(worst)}, {ours} against {theirs}."
        )
        found.append(Finding(text, one.tone))
    return found


def conclusion(data: Compared) -> str | None:
    """One sentence on whether the search helped; None before there is a final model.

    Args:
        data: Results.
    """
    found = list(comparisons(data))
    if not found:
        return None
    tones = {one.tone for one in found}
    helped = "The search helped" if tones == {"good"} else "It is not shown that the search helped"
    if "bad" in tones:
        helped = "The search did not help"
    averages = ", ".join(f"{points(one.average)} against {one.label}" for one in found)
    worst = ", ".join(f"{points(one.worst)} against {one.label}" for one in found)
    unmeasured = "" if data.tuned is not None else "; task arithmetic with tuned λ was not measured"
    where = SPLITS[judged_split(data)]
    return f"{helped} ({where}): on average {averages}; on the worst task {worst}{unmeasured}"


def points(difference: Gain | Worst) -> str:
    """A difference in words: "+5.2 points (95 % interval +1.1 to +9.3)".

    Args:
        difference: Of two scores, with its interval.
    """
    value, low, high = (
        f"{100 * x:+.1f}".replace("-", "−") for x in (difference.value, difference.low, difference.high)
    )
    return f"{value} points (95 % interval {low} to {high})"
