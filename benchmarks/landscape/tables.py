"""Paired differences with their intervals, as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

Figures = Sequence[Mapping[str, float]]
"""What was measured of one method, a mapping a seed, in the order of the seeds."""

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference, and half the width of its interval."""

    mean: float
    half: float

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        mark = " *" if self.certain else ""
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f}{mark}"


def difference(ours: Sequence[float], theirs: Sequence[float], comparisons: int = 1) -> Difference:
    """The mean of paired differences with its t interval at 95 %, all of `comparisons` at once (Bonferroni).

    Args:
        ours: A value a seed; at least two.
        theirs: The values that they are compared with, of the same seeds.
        comparisons: How many differences are looked at together.
    """
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    quantile = t_quantile(1 - (1 - LEVEL) / (2 * comparisons), len(pairs) - 1)
    return Difference(fmean(pairs), quantile * stdev(pairs) / math.sqrt(len(pairs)))


def t_quantile(probability: float, degrees: int) -> float:
    """Student's quantile by its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    Within 1 % from 9 degrees of freedom for probabilities up to 0.999.

    Args:
        probability: Above 0.5.
        degrees: Degrees of freedom.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def table(measured: Mapping[str, Figures], reference: str) -> str:
    """Markdown: the reference's true scores in percent, and each other method's differences from it.

    Args:
        measured: Figures by method.
        reference: One of the methods.
    """
    ours = measured[reference]
    count = len(measured) - 1 + 2
    lines = [
        "| | average | worst task | best single model | shrinkage | beats the naive merge by |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, found: Figures, keys: Sequence[str]) -> str:
        cells = [
            _mean(found, key) if name == reference else str(difference(_column(found, key), _column(ours, own), count))
            for key, own in zip(keys, ("average", "worst", "single"), strict=False)
        ]
        return f"| {name} | {' | '.join(cells)} |"

    for name, found in measured.items():
        gain = difference(_column(found, "average"), _column(ours, "naive"), count)
        lines.append(f"{row(name, found, ('average', 'worst', 'single'))} {_mean(found, 'shrinkage')} | {gain} |")
    lines += [
        f"{row(name, ours, (key,))} | | | |" for name, key in (("naive merge", "naive"), ("best expert", "expert"))
    ]
    return "\n".join(lines) + "\n"


def _column(figures: Figures, key: str) -> list[float]:
    return [each[key] for each in figures]


def _mean(figures: Figures, key: str) -> str:
    return f"{100 * fmean(_column(figures, key)):.1f}"
