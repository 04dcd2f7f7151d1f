"""Error bars: Wilson intervals for shares, seeded bootstraps for averages over tasks and for gains, all at 95 %; and an
exact test of whether a gain is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cycleqd.report.data import Tally

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_DRAWS = 20_000
_OUTCOMES = 2_000_000  # most that the exact test adds up
_LEVEL = 0.05


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, as fractions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain(Interval):
    """A difference of two models on the same samples.

    `p`: the probability of a difference as large or larger, either way, if both were equally good (see `exact_p`).
    """

    p: float

    @property
    def certain(self) -> bool:
        """Whether p is below 5 %. The interval may exclude zero where it is not: of few samples it is too narrow."""
        return self.p < _LEVEL


@dataclass(frozen=True)
class Worst(Interval):
    """A difference of two models' lowest scores. `ours`, `theirs`: the task of each, and its score there."""

    ours: tuple[str, float]
    theirs: tuple[str, float]


def share(tally: Tally) -> Interval:
    """A score with Wilson's interval (1927), which stays in [0, 1] and is sound at 0 and 1.

    Args:
        tally: Verdicts on one task.
    """
    n, p = tally.total, tally.score
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Interval(p, min(max(0.0, middle - half), p), max(min(1.0, middle + half), p))


def average(tallies: Mapping[str, Tally]) -> Interval:
    """The mean score over tasks; seeded bootstrap over each task's samples, percentiles: equal data, equal interval.

    Args:
        tallies: Verdicts by task.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    draws = np.mean([rng.binomial(t.total, t.score, _DRAWS) / t.total for t in tallies.values()], axis=0)
    return _estimate(float(np.mean([t.score for t in tallies.values()])), draws)


def exact_p(ours: Mapping[str, Tally], theirs: Mapping[str, Tally]) -> float:
    """How likely so large a difference of mean scores is, either way, where each sample that only one model passes is
    either's by a fair coin; on one task this is McNemar's exact test.

    Exact, but for very many samples on tasks of very many sizes, where it is estimated from seeded draws.

    Args:
        ours: Verdicts by task.
        theirs: Verdicts by task, on the same samples.
    """
    flips: dict[int, int] = {}  # samples of a task → samples that one of the models passes, over tasks of that size
    found = 0.0
    for task, mine in ours.items():
        pairs = list(zip(mine.verdicts, theirs[task].verdicts, strict=True))
        won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
        flips[len(pairs)] = flips.get(len(pairs), 0) + won + lost
        found += (won - lost) / len(pairs)
    least = abs(found) - 1e-12
    if math.prod(count + 1 for count in flips.values()) > _OUTCOMES:
        rng = np.random.Generator(np.random.PCG64(0))
        draws = sum((2 * rng.binomial(count, 0.5, _DRAWS) - count) / size for size, count in flips.items())
        return float(np.mean(np.abs(draws) >= least))
    values, chances = np.zeros(1), np.ones(1)
    for size, count in flips.items():
        steps = (2 * np.arange(count + 1) - count) / size
        coin = np.array([math.comb(count, k) / 2**count for k in range(count + 1)])
        values, chances = np.add.outer(values, steps).ravel(), np.multiply.outer(chances, coin).ravel()
    return min(1.0, float(chances[np.abs(values) >= least].sum()))


def gain(ours: Mapping[str, Tally], theirs: Mapping[str, Tally]) -> Gain:
    """How much the mean score over tasks is higher; paired bootstrap over the samples that both models answered.

    Args:
        ours: Verdicts by task of the model in question.
        theirs: Verdicts by task, on the same samples, of the model that it is compared with.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    draws, values = [], []
    for task, mine in ours.items():
        pairs = list(zip(mine.verdicts, theirs[task].verdicts, strict=True))
        won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
        n = len(pairs)
        counts = rng.multinomial(n, [won / n, lost / n, (n - won - lost) / n], _DRAWS)
        draws.append((counts[:, 0] - counts[:, 1]) / n)
        values.append((won - lost) / n)
    found = _estimate(float(np.mean(values)), np.mean(draws, axis=0))
    return Gain(found.value, found.low, found.high, exact_p(ours, theirs))


def worst_gain(ours: Mapping[str, Tally], theirs: Mapping[str, Tally]) -> Worst:
    """How much a model's lowest score over tasks is above another's; paired bootstrap over the samples of each task.

    Args:
        ours: Verdicts by task of the model in question.
        theirs: Verdicts by task, on the same samples, of the model that it is compared with.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    draws = [_paired(rng, mine, theirs[task]) for task, mine in ours.items()]
    mine, its = (np.min([pair[side] for pair in draws], axis=0) for side in (0, 1))
    lowest = [min(((task, found[task].score) for task in ours), key=lambda pair: pair[1]) for found in (ours, theirs)]
    found = _estimate(lowest[0][1] - lowest[1][1], mine - its)
    return Worst(found.value, found.low, found.high, *lowest)


def _paired(rng: np.random.Generator, ours: Tally, theirs: Tally) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of both models in each draw of the samples."""
    pairs = list(zip(ours.verdicts, theirs.verdicts, strict=True))
    counts = [pairs.count(pair) for pair in (("1", "1"), ("1", "0"), ("0", "1"), ("0", "0"))]
    both, mine, its, _ = rng.multinomial(len(pairs), [count / len(pairs) for count in counts], _DRAWS).T
    return (both + mine) / len(pairs), (both + its) / len(pairs)


def ratio(ours: Tally, base: Tally) -> Interval:
    """Our score over the base's; paired bootstrap, percentiles.

    Draws in which the base passes nothing are left out.

    Args:
        ours: Verdicts of the model in question.
        base: Verdicts of the base on the same samples, of which it passed at least one.
    """
    mine, its = _paired(np.random.Generator(np.random.PCG64(0)), ours, base)
    valid = its > 0
    return _estimate(ours.score / base.score, mine[valid] / its[valid])


def _estimate(value: float, draws: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))
