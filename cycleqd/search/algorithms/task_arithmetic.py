"""Task arithmetic with tuned λ: line searches, first over one λ for all experts, then over each coordinate in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cycleqd.search.coefficients import CoefficientSearch, Point

_FINEST = 10  # halvings of the range: scores of a few hundred samples do not tell closer λ apart


class TaskArithmetic(CoefficientSearch):
    """A generation is one line: its children are spread evenly along it, around the best point so far.

    The first line is the whole range, all coordinates equal. Each later one changes one coordinate, within half of the
    range around its best value; after every turn of all coordinates the lines are half as long.
    """

    @property
    def label(self) -> str:
        """Task arithmetic."""
        return "Task arithmetic"

    def problems(self) -> Iterator[str]:
        """A line of one point."""
        yield from super().problems()
        if self.method.children < 2:
            yield "algorithm 'task_arithmetic' compares the children of a generation: set method.children to 2 or more"

    def points(self, rounds: Sequence[Sequence[float]]) -> list[Point]:
        """The line through the best point so far; of equally good ones the first counts."""
        best, top = self._line(0, []), -1.0
        centre = best[0]
        for number, averages in enumerate(rounds):
            line = self._line(number, centre)
            winner = int(np.argmax(averages))
            if averages[winner] > top:
                centre, top = line[winner], averages[winner]
        return self._line(len(rounds), centre)

    def _line(self, number: int, centre: Point) -> list[Point]:
        """The points of a line: number 0 is the first."""
        low, high, count = self.crossover.low, self.crossover.high, self.method.children
        if number == 0:
            return [[low + (high - low) * (i + 1) / count] * self.size for i in range(count)]
        turn, coordinate = divmod(number - 1, self.size)
        width = (high - low) / 2 ** min(turn + 1, _FINEST)
        start = min(max(centre[coordinate] - width / 2, low), high - width)
        values = [start + width * (i + 0.5) / count for i in range(count)]
        return [[*centre[:coordinate], value, *centre[coordinate + 1 :]] for value in values]
