"""What a plug-in imports: the base classes of tasks, operators and engines, and their records.

This module stays where it is, whatever moves behind it, so that a stored plug-in runs with later versions.
"""

from cycleqd.evaluation.engines import Adapter, Completion, Engine, EngineSettings, Progress, Request, Sampling
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, SingleTurn, Task, Verdict, Workspace
from cycleqd.search.operators import Doubles, Floats, Parameters
from cycleqd.search.operators.copies import Copies
from cycleqd.search.operators.crossover import ElementCrossover, NormalWeights, PointCrossover, SpanCrossover
from cycleqd.search.operators.final import Final, Recipe
from cycleqd.search.operators.mutation import CoreMutation, ElementMutation, Matrix, SpanMutation
from cycleqd.search.operators.selection import Pair, Pool, Selection, draw_pair
from cycleqd.search.pareto import score_matrix
from cycleqd.search.randomness import tensor_stream

__all__ = (  # noqa: RUF022 -- by subject
    "Task", "Sample", "Episode", "SingleTurn", "Message", "Verdict", "Outcome", "Workspace",
    "Selection", "Pool", "Pair", "draw_pair", "score_matrix", "SpanCrossover", "ElementCrossover",
    "PointCrossover", "NormalWeights", "SpanMutation", "ElementMutation", "CoreMutation", "Matrix", "Floats", "Doubles",
    "Copies", "Final", "Recipe", "Parameters", "tensor_stream",
    "Engine", "EngineSettings", "Request", "Adapter", "Sampling", "Completion", "Progress",
)  # fmt: skip
