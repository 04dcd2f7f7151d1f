"""What a plug-in imports: the base classes of tasks and operators, and their records.

This module stays where it is, whatever moves behind it, so that a stored plug-in runs with later versions.
"""

from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, SingleTurn, Task, Verdict, Workspace
from cycleqd.search.operators import Parameters
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import Crossover
from cycleqd.search.operators.final import Final, Recipe
from cycleqd.search.operators.mutation import ElementMutation, Floats, Matrix, SpanMutation
from cycleqd.search.operators.selection import Pair, Pool, Selection, draw_pair
from cycleqd.search.pareto import score_matrix
from cycleqd.search.randomness import tensor_stream

__all__ = [
    "Copies",
    "Crossover",
    "ElementMutation",
    "Episode",
    "Final",
    "Floats",
    "Matrix",
    "Message",
    "Outcome",
    "Pair",
    "Parameters",
    "Pool",
    "Recipe",
    "Sample",
    "Selection",
    "SingleTurn",
    "SpanMutation",
    "Task",
    "Verdict",
    "Workspace",
    "draw_pair",
    "score_matrix",
    "tensor_stream",
]
