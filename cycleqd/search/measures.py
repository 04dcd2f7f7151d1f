"""What is measured of a snapshot: quality, balance, diversity, Pareto fronts and speed in evaluations.

Every measure means the same for every method, as all of them record the same K archives (see state).
"""

from __future__ import annotations

from collections.abc import Sequence

from cycleqd.search import pareto
from cycleqd.search.archive import union
from cycleqd.search.pareto import score_matrix
from cycleqd.search.records import Evaluated, Scored, Scores, average
from cycleqd.search.state import State, best_average


def measure(state: State, naive: Scores | None = None) -> dict[str, float]:
    """All measures of a snapshot, by name (as logged: letters, digits, "_" and "/").

    - best/TASK, best_average: over all models evaluated
    - worst_of_best: the lowest score of the model with the best average (balance)
    - coverage/TASK, qd_score/TASK: of the archive whose quality TASK is
    - diversity: distinct elites (by digest) per filled cell, over all archives
    - front_elites, front_all: size of the Pareto front over the K scores, of the elites and of all models evaluated
    - hypervolume_elites, hypervolume_all: what these dominate above the lowest score of the experts on each task
    - evaluations: children so far
    - evaluations_to_pass/best_expert, evaluations_to_pass/naive: see there; left out until it happened

    Args:
        state: A snapshot.
        naive: Scores of the naive merge, where it was evaluated.
    """
    best = best_average(state)
    lowest = {task: min(expert.scores[task] for expert in state.experts) for task in state.tasks}
    found = {f"best/{task}": line.scores[task] for task, line in state.bests.items()}
    found |= {"best_average": average(best.scores), "worst_of_best": min(best.scores.values())}
    for archive in state.archives:
        found |= {f"coverage/{archive.quality}": archive.coverage, f"qd_score/{archive.quality}": archive.qd_score}
    found["diversity"] = diversity(state)
    for name, front in (("elites", front_of_elites(state)), ("all", front_of_all(state))):
        found[f"front_{name}"] = float(len(front))
        found[f"hypervolume_{name}"] = hypervolume(front, state.tasks, lowest)
    found["evaluations"] = float(state.evaluations)
    rivals = {"best_expert": max((expert.scores for expert in state.experts), key=average)}
    if naive is not None:
        rivals["naive"] = naive
    for name, rival in rivals.items():
        if (needed := evaluations_to_pass(state, average(rival))) is not None:
            found[f"evaluations_to_pass/{name}"] = float(needed)
    return found


def diversity(state: State) -> float:
    """Distinct elites (by digest) per filled cell over all archives, from 1/(filled cells) to 1.

    Low: one strong model floods the archives.

    Args:
        state: A snapshot.
    """
    elites = [elite.model.digest for archive in state.archives for elite in archive.elites.values()]
    return len(set(elites)) / len(elites)


def front_of_elites(state: State) -> tuple[Scored, ...]:
    """The elites that no other elite dominates, in order of archive and cell.

    Args:
        state: A snapshot.
    """
    return _front(union(state.archives), state.tasks)


def front_of_all(state: State) -> tuple[Scored, ...]:
    """The models that no other one ever evaluated dominates, in order of evaluation.

    Args:
        state: A snapshot.
    """
    return _front([Scored(line.model, line.scores) for line in state.history], state.tasks)


def _front(models: Sequence[Scored], tasks: Sequence[str]) -> tuple[Scored, ...]:
    return tuple(models[i] for i in pareto.front(score_matrix(models, tasks)))


def hypervolume(models: Sequence[Scored], tasks: Sequence[str], reference: Scores) -> float:
    """Exact volume of score space that the models dominate above the reference point.

    Args:
        models: Models with their scores.
        tasks: The K search tasks: the axes.
        reference: Scores of the reference point.
    """
    return pareto.hypervolume(score_matrix(models, tasks), [reference[task] for task in tasks])


def evaluations_to_pass(state: State, threshold: float) -> int | None:
    """Children evaluated until one's average exceeded a threshold, that one included; None while none did.

    Args:
        state: A snapshot.
        threshold: An average over the search tasks, in [0, 1].
    """
    children: Sequence[Evaluated] = state.children
    return next((n for n, line in enumerate(children, 1) if average(line.scores) > threshold), None)
