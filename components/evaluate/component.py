"""evaluate as Kubeflow Pipelines components: of one child inside a loop, and of a list of models."""

from kfp import dsl

from cycleqd.search.place import Place


@dsl.component(base_image=Place().image("evaluate"), install_kfp_package=False)
def evaluate_child(
    evolution: str, item: str, tasks: str, split: str, profile: str, scores: dsl.Output[dsl.Metrics]
) -> str:
    """Score one child on some of the tasks. What has a score is not evaluated again.

    Args:
        evolution: Name of the evolution.
        item: The child's loop item.
        tasks: JSON list of names of tasks.
        split: "search" (what the search sees) or "test" (held out).
        profile: The profile that this runs under, by name and sha256.
        scores: Scores and their standard errors, as shares of 1.

    Returns:
        The same loop item.
    """
    from components import items, shown
    from components.evaluate.stage import run

    models = items.models([item])
    run(evolution, models, tasks, split, profile)
    shown.scores(scores, evolution, models, tasks, split)
    return item


@dsl.component(base_image=Place().image("evaluate"), install_kfp_package=False)
def evaluate_models(
    evolution: str, models: list[str], tasks: str, split: str, profile: str, scores: dsl.Output[dsl.Metrics]
) -> None:
    """Score several models on some of the tasks with one engine. What has a score is not evaluated again.

    Args:
        evolution: Name of the evolution.
        models: Ids of models, or loop items of children.
        tasks: JSON list of names of tasks.
        split: "search" (what the search sees) or "test" (held out).
        profile: The profile that this runs under, by name and sha256.
        scores: Scores and their standard errors, as shares of 1.
    """
    from components import items, shown
    from components.evaluate.stage import run

    names = items.models(models)
    run(evolution, names, tasks, split, profile)
    shown.scores(scores, evolution, names, tasks, split)
